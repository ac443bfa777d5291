"""Likeliest classes in few bytes teach what all classes do."""

import pytest
import torch

from lightning_optim.distillation import TopLogits
from lightning_optim.distillation.cache.packed_logits import (
    is_packed,
    pack_top_logits,
    packed_names,
    packed_temperatures,
    unpack_top_logits,
)
from lightning_optim.functional import soft_target_loss, top_soft_target_loss


def zipf(positions, classes=32768):
    """Probabilities that fall with the rank as a power, and a student whose logits are near the teacher's."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.stack([torch.randperm(classes, generator=generator) + 1.0 for _ in range(positions)])
    teacher = -1.42 * ranks.log() + 0.5 * torch.randn(ranks.shape, generator=generator)
    return teacher + torch.randn(ranks.shape, generator=generator), teacher


def gradient(loss, student):
    student = student.clone().requires_grad_()
    loss(student).backward()
    return student.grad.flatten()


def test_32_of_32768_classes_take_128_bytes_and_keep_the_gradient():
    student, teacher = zipf(24)
    packed = pack_top_logits("output", TopLogits.of(teacher, 32, [1.0]))
    assert sum(each[0].nbytes for name, each in packed.items() if name != "output/classes") == 128
    top = unpack_top_logits("output", packed, [1.0])
    full = gradient(lambda mine: soft_target_loss(mine, teacher), student)
    kept = gradient(lambda mine: top_soft_target_loss(mine, top.indices, top.log_probabilities(1.0)), student)
    renormalised = torch.full_like(teacher, -torch.inf).scatter(-1, top.indices, top.logits)
    others = gradient(lambda mine: soft_target_loss(mine, renormalised), student)
    assert torch.cosine_similarity(full, kept, 0) >= 0.998
    assert torch.cosine_similarity(full, others, 0) <= 0.97


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_half_precision_costs_no_direction(temperature):
    student, teacher = zipf(8)
    top = TopLogits.of(teacher, 32, [temperature])
    packed = unpack_top_logits("x", pack_top_logits("x", top), [temperature])

    def loss(held):
        return lambda mine: top_soft_target_loss(mine, held.indices, held.log_probabilities(temperature), temperature)

    assert torch.cosine_similarity(gradient(loss(top), student), gradient(loss(packed), student), 0) > 0.999999


@pytest.mark.parametrize(("classes", "width"), [(5, 1), (256, 1), (257, 2), (65536, 2), (65537, 3), (17_000_000, 4)])
def test_indices_take_as_few_bytes_as_the_classes_need(classes, width):
    logits = torch.zeros(2, classes)
    logits[0, classes - 1], logits[1, 0], logits[1, classes // 2] = 3.0, 2.0, 1.0
    top = TopLogits.of(logits, 2, [1.0])
    packed = pack_top_logits("x", top)
    assert packed["x/index"].shape == (2, 2, width)
    back = unpack_top_logits("x", packed, [1.0])
    assert torch.equal(back.indices, top.indices)
    assert back.num_classes == classes


def test_one_class_is_held_by_its_index_and_the_others_probability():
    packed = pack_top_logits("x", TopLogits.of(torch.tensor([[0.0, 2.0, 1.0]]), 1, [1.0]))
    assert packed["x/logits"].shape == (1, 0)
    expected = torch.tensor([[2.0, 0.0, 1.0]]).softmax(-1)[0, 0]
    found = unpack_top_logits("x", packed, [1.0]).log_probabilities(1.0).exp()
    torch.testing.assert_close(found, torch.tensor([[expected, 1.0 - expected]]), rtol=1e-3, atol=0.0)


def test_each_temperature_has_a_tensor_of_its_own():
    packed = pack_top_logits("x", TopLogits.of(torch.randn(3, 4), 2, [2.0, 1]))
    assert set(packed) == set(packed_names("x", [1.0, 2]))
    assert packed_temperatures("x", packed) == [1.0, 2.0]
    assert not packed_temperatures("y", packed)
    assert is_packed("x", packed)
    assert not is_packed("y", packed)
