"""Penalties against sums over Python's floats, and against the gradients that their formulas have."""

import math

import pytest
import torch

import lightning_optim.functional as LF


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    function(*leaves).backward()
    return [leaf.grad for leaf in leaves]


def test_l1_is_the_sum_of_sizes_and_pulls_by_the_sign():
    weight = rand(3, 4)
    assert float(LF.l1_penalty(weight)) == pytest.approx(sum(abs(each) for each in weight.flatten().tolist()))
    assert torch.equal(gradient(LF.l1_penalty, weight)[0], weight.sign())


def test_l2_is_half_the_sum_of_squares_and_pulls_by_the_weight():
    weight = rand(3, 4)
    assert float(LF.l2_penalty(weight)) == pytest.approx(sum(each * each for each in weight.flatten().tolist()) / 2)
    torch.testing.assert_close(gradient(LF.l2_penalty, weight)[0], weight)


def test_orthogonality_is_summed_over_pairs_of_rows():
    rows = rand(3, 5).tolist()
    by_hand = 0.0
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            product = sum(a * b for a, b in zip(one, other, strict=True))
            by_hand += (product - (i == j)) ** 2
    assert float(LF.orthogonality_penalty(torch.tensor(rows).double())) == pytest.approx(by_hand, rel=1e-5)
    tall = torch.tensor(rows).double().T
    assert float(LF.orthogonality_penalty(tall)) == pytest.approx(by_hand, rel=1e-5)
    two = torch.stack([tall, tall])
    assert float(LF.orthogonality_penalty(two)) == pytest.approx(2 * by_hand, rel=1e-5)


def test_orthogonal_rows_cost_nothing():
    orthogonal, _ = torch.linalg.qr(rand(6, 6))
    assert float(LF.orthogonality_penalty(orthogonal[:4])) == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_spectral_penalty_is_half_the_largest_eigenvalue_and_its_gradient_is_exact(shape):
    weight = rand(*shape)
    left, values, right = torch.linalg.svd(weight)
    assert float(LF.spectral_penalty(weight, 500)) == pytest.approx(0.5 * float(values[0]) ** 2)
    (found,) = gradient(lambda each: LF.spectral_penalty(each, 500), weight)
    torch.testing.assert_close(found, values[0] * left[:, :1] @ right[:1])


def test_few_iterations_are_close_and_the_largest_block_counts():
    blocks = torch.stack([rand(16, 64, seed=seed) for seed in range(3)])
    exact = 0.5 * float(torch.linalg.svdvals(blocks)[:, 0].max()) ** 2
    assert float(LF.spectral_penalty(blocks, 20)) == pytest.approx(exact, rel=0.01)


def test_group_lasso_is_the_sum_of_lengths():
    weight, bias, reader = rand(4, 2, 3), rand(4), rand(5, 8)
    index = torch.arange(4).unsqueeze(1)
    spread = torch.arange(8).view(4, 2)  # each channel is read at two positions
    squares = LF.sum_of_squares([(weight, 0, index), (bias, 0, index), (reader, 1, spread)])
    by_hand = 0.0
    for channel in range(4):
        own = [*weight[channel].flatten().tolist(), float(bias[channel])]
        own += [*reader[:, 2 * channel].tolist(), *reader[:, 2 * channel + 1].tolist()]
        assert len(own) == 17
        by_hand += math.sqrt(17) * math.sqrt(sum(each * each for each in own))
    assert float(LF.group_lasso_penalty(squares, 17)) == pytest.approx(by_hand)


def test_a_channel_of_zeros_has_no_gradient_and_the_others_have_a_unit_one():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    each = torch.arange(2).unsqueeze(1)
    (found,) = gradient(lambda w: LF.group_lasso_penalty(LF.sum_of_squares([(w, 0, each)]), 1), weight)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype):
    weight = torch.full((5000,), 0.5, dtype=dtype)
    assert float(LF.l1_penalty(weight)) == 2500.0
    assert LF.l2_penalty(weight).dtype is torch.float32
