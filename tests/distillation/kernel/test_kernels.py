"""Kernels against the formula; gradients against finite differences; memory against one tensor of logits."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lightning_optim.distillation import TopLogits
from lightning_optim.distillation.functional import attention_transfer_loss, soft_target_loss
from lightning_optim.distillation.kernel.attention import QueriesAndKeys, attention_transfer_loss_from_queries
from lightning_optim.distillation.kernel.divergence import row_blocks
from lightning_optim.distillation.kernel.hidden import soft_target_loss_from_hidden
from lightning_optim.distillation.kernel.logits import soft_target_loss_
from lightning_optim.distillation.kernel.top import top_soft_target_loss


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


MASK = torch.tensor([[True, False, True, True], [False, True, True, False]])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("mask", [None, MASK])
def test_logits_in_place_have_the_value_and_the_gradient_of_the_formula(reduction, temperature, mask):
    teacher = rand(2, 4, 5, seed=1)
    settings = {"reduction": reduction, "mask": mask}
    mine, theirs = rand(2, 4, 5).requires_grad_(), rand(2, 4, 5).requires_grad_()
    found = soft_target_loss_(mine, teacher.clone(), temperature, **settings)
    expected = soft_target_loss(theirs, teacher, temperature, **settings)
    torch.testing.assert_close(found, expected)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    step = 1e-6 * rand(2, 4, 5, seed=2)
    with torch.no_grad():
        ahead, behind = (
            soft_target_loss_(mine + way * step, teacher.clone(), temperature, **settings) for way in (1, -1)
        )
    torch.testing.assert_close((ahead - behind) / 2, (mine.grad / 3 * step).sum(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_hidden_states_have_the_value_and_the_gradients_of_the_formula(reduction, mask):
    hidden, weight = rand(2, 4, 3).requires_grad_(), rand(5, 3).requires_grad_()
    teacher = rand(2, 4, 6, seed=1), rand(5, 6, seed=1)
    settings = {"reduction": reduction, "mask": mask}
    expected = soft_target_loss(hidden @ weight.T, teacher[0] @ teacher[1].T, 2.0, **settings)
    torch.testing.assert_close(soft_target_loss_from_hidden((hidden, weight), teacher, 2.0, **settings), expected)
    assert gradcheck(lambda *head: soft_target_loss_from_hidden(head, teacher, 2.0, **settings), (hidden, weight))
    assert gradcheck(lambda states: soft_target_loss_from_hidden((states, weight.detach()), teacher, 2.0), (hidden,))


BIAS = rand(1, 2, 4, 4, seed=5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("valid", [None, MASK])
@pytest.mark.parametrize("key_heads", [2, 1])
@pytest.mark.parametrize(
    "how",
    [{}, {"is_causal": True}, {"mask": MASK[:, None, None]}, {"mask": BIAS, "scale": 0.3}],
    ids=["plain", "causal", "padded", "bias"],
)
def test_attention_has_the_value_and_the_gradients_of_the_formula(reduction, valid, key_heads, how):
    query, key = rand(2, 2, 4, 3).requires_grad_(), rand(2, key_heads, 4, 3, seed=2).requires_grad_()
    teacher = QueriesAndKeys(rand(2, 2, 4, 5, seed=3), rand(2, key_heads, 4, 5, seed=4), **how)

    def loss(query, key):
        return attention_transfer_loss_from_queries(
            QueriesAndKeys(query, key, **how), teacher, reduction=reduction, mask=valid
        )

    expected = attention_transfer_loss(
        by_sdpa(QueriesAndKeys(query, key, **how)),
        by_sdpa(teacher),
        reduction=reduction,
        mask=None if valid is None else valid[:, None].expand(2, 2, 4),
    )
    torch.testing.assert_close(loss(query, key), expected)
    assert gradcheck(loss, (query, key))


def by_sdpa(parts):
    """Attention as PyTorch's own kernel has it: applied to the values that show which key it sees."""
    heads, keys = parts.query.shape[1], parts.key.shape[2]
    values = torch.eye(keys, dtype=parts.key.dtype).expand(len(parts.key), heads, keys, keys)
    key = parts.key.repeat_interleave(heads // parts.key.shape[1], 1)
    return F.scaled_dot_product_attention(
        parts.query, key, values, attn_mask=parts.mask, is_causal=parts.is_causal, scale=parts.scale
    )


def test_a_query_that_sees_no_key_adds_nothing():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 1, :] = False
    query = rand(1, 1, 3, 2).requires_grad_()
    pair = (
        QueriesAndKeys(query, rand(1, 1, 3, 2, seed=1), mask),
        QueriesAndKeys(rand(1, 1, 3, 2, seed=2), query.detach(), mask),
    )
    loss = attention_transfer_loss_from_queries(*pair, reduction="sum")
    loss.backward()
    assert loss.isfinite()
    assert query.grad[0, 0, 1].tolist() == [0.0, 0.0]
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_a_query_that_is_no_number_is_not_taken_for_one_that_sees_no_key(broken):
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 1, :] = False
    queries = {"student": rand(1, 1, 3, 2), "teacher": rand(1, 1, 3, 2, seed=2)}
    queries[broken][0, 0, 2, 0] = math.nan
    student, teacher = (QueriesAndKeys(query, rand(1, 1, 3, 2, seed=1), mask) for query in queries.values())
    assert attention_transfer_loss_from_queries(student, teacher).isnan()


def test_a_position_that_is_masked_adds_nothing_whatever_it_holds():
    valid = torch.tensor([True, False, True])
    student, teacher = rand(3, 4), rand(3, 4, seed=1)
    student[1] = teacher[1] = math.nan
    head = torch.eye(4, dtype=torch.float64)
    for loss in (
        lambda leaf: soft_target_loss_(leaf, teacher.clone(), mask=valid),
        lambda leaf: soft_target_loss_from_hidden((leaf, head), (teacher, head), mask=valid),
    ):
        leaf, part = student.clone().requires_grad_(), student[valid].clone().requires_grad_()
        found, expected = loss(leaf), soft_target_loss(part, teacher[valid])
        found.backward()
        expected.backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(leaf.grad[valid], part.grad)
        assert leaf.grad[1].tolist() == [0.0] * 4
    head = head.requires_grad_()
    soft_target_loss_from_hidden((student, head), (teacher, head.detach()), mask=valid).backward()
    assert head.grad.isfinite().all()


def test_a_class_that_the_teacher_excludes_adds_nothing():
    student, teacher = rand(2, 3).requires_grad_(), rand(2, 3, seed=1)
    teacher[:, 1] = -math.inf
    expected = soft_target_loss(student, teacher)
    loss = soft_target_loss_(student, teacher.clone())
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert student.grad.isfinite().all()


def test_a_class_that_both_exclude_adds_nothing_and_one_that_only_the_student_does_is_infinitely_far():
    student, teacher = rand(2, 3).requires_grad_(), rand(2, 3, seed=1)
    with torch.no_grad():
        student[:, 1] = teacher[0, 1] = -math.inf
    valid = torch.tensor([True, False])
    expected = soft_target_loss(student, teacher, mask=valid)
    loss = soft_target_loss_(student, teacher.clone(), mask=valid)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert float(soft_target_loss_(student.detach(), teacher.clone())) == math.inf


def test_what_is_no_number_in_a_position_that_counts_shows_in_the_loss_and_in_the_gradient():
    student, teacher = rand(2, 3).requires_grad_(), rand(2, 3, seed=1)
    teacher[1, 2] = math.nan
    loss = soft_target_loss_(student, teacher)
    loss.backward()
    assert loss.isnan()
    assert student.grad.isnan().any(-1).tolist() == [False, True]


def test_many_blocks_are_one_sum_and_closer_to_exact_than_operators_are():
    student, teacher = 3.0 * rand(300, 5000, dtype=torch.float32), 3.0 * rand(300, 5000, seed=1, dtype=torch.float32)
    assert len([*row_blocks(student)]) > 5

    def gradient_of(loss, dtype):
        leaf = student.to(dtype, copy=True).requires_grad_()
        value = loss(leaf, teacher.to(dtype, copy=True), 2.0)
        value.backward()
        return value.detach().double(), leaf.grad.double()

    exact = gradient_of(soft_target_loss, torch.float64)
    errors = {
        loss: (gradient_of(loss, torch.float32)[1] - exact[1]).abs().max() / exact[1].abs().max()
        for loss in (soft_target_loss_, soft_target_loss)
    }
    assert errors[soft_target_loss_] < 3e-7
    assert errors[soft_target_loss_] < errors[soft_target_loss]
    torch.testing.assert_close(gradient_of(soft_target_loss_, torch.float32)[0], exact[0], rtol=1e-6, atol=0.0)


def test_heads_of_other_number_formats_are_compared():
    hidden, weight = rand(40, 8, dtype=torch.float32).requires_grad_(), rand(9, 8, dtype=torch.float32).requires_grad_()
    teacher = rand(40, 8, seed=1, dtype=torch.bfloat16), rand(9, 8, seed=1, dtype=torch.bfloat16)
    found = soft_target_loss_from_hidden((hidden, weight), teacher)
    torch.testing.assert_close(found, soft_target_loss(hidden @ weight.T, teacher[0] @ teacher[1].T))
    found.backward()
    assert hidden.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    dtype = torch.bfloat16
    student, teacher = rand(6, 50, dtype=torch.float32).to(dtype), rand(6, 50, seed=1, dtype=torch.float32).to(dtype)
    expected = soft_target_loss(student, teacher)
    leaf = student.clone().requires_grad_()
    loss = soft_target_loss_(leaf, teacher.clone())
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert loss.dtype is torch.float32
    assert leaf.grad.dtype is dtype


SCALE = 65536.0  # where loss scales begin


def transfer_attention(hidden, weight, other):
    heads = [QueriesAndKeys(*(each.view(1, 1, -1, 8) for each in pair)) for pair in ((hidden, weight), other)]
    return attention_transfer_loss_from_queries(*heads)


def transfer_likeliest(hidden, weight, other):
    top = TopLogits.of((other[0] @ other[1].T).float(), 4, [1.0])
    return top_soft_target_loss(hidden @ weight.T, top.indices, top.log_probabilities(1.0))


@pytest.mark.parametrize(
    "loss",
    [
        transfer_attention,
        transfer_likeliest,
        lambda hidden, weight, other: soft_target_loss_from_hidden((hidden, weight), other),
    ],
)
def test_float16_holds_the_gradient_that_a_loss_scale_multiplies(loss):
    values = [rand(*shape, seed=seed, dtype=torch.float32) for seed, shape in enumerate([(20000, 8), (64, 8)] * 2)]

    def gradients(dtype):
        hidden, weight, *other = (each.to(dtype) for each in values)
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        (SCALE * loss(*leaves, other)).backward()
        return [leaf.grad.float() for leaf in leaves]

    for found, expected in zip(gradients(torch.float16), gradients(torch.float32), strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_float16_has_no_room_for_a_gradient_in_place():
    with pytest.raises(ValueError, match="take soft_target_loss"):
        soft_target_loss_(torch.zeros(2, 3, dtype=torch.float16), torch.zeros(2, 3, dtype=torch.float16))


def test_autocast_changes_nothing_in_a_kernel():
    hidden, weight = rand(6, 8, dtype=torch.float32).requires_grad_(), rand(5, 8, dtype=torch.float32).requires_grad_()
    other = rand(6, 8, seed=1, dtype=torch.float32), rand(5, 8, seed=1, dtype=torch.float32)
    heads = [QueriesAndKeys(*(each.view(1, 1, -1, 8) for each in pair)) for pair in ((hidden, weight), other)]

    def losses():
        yield soft_target_loss_(hidden @ weight.T, other[0] @ other[1].T)
        yield soft_target_loss_from_hidden((hidden, weight), other)
        yield attention_transfer_loss_from_queries(*heads)

    plain = [*losses()]
    with torch.autocast("cpu", torch.bfloat16):
        found = [*losses()]
    assert all(loss.dtype is torch.float32 for loss in found)
    assert [float(loss) for loss in found[1:]] == [float(loss) for loss in plain[1:]]
    torch.testing.assert_close(found[0], plain[0], rtol=0.05, atol=0.0)  # of logits in bfloat16
    sum(found).backward()
    assert hidden.grad.isfinite().all()


def test_a_gradient_is_given_once():
    student = rand(2, 3).requires_grad_()
    loss = soft_target_loss_(student, rand(2, 3, seed=1))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call backward once"):
        loss.backward()


def test_what_cannot_be_overwritten_is_refused_and_nothing_is():
    student, teacher = rand(3, 4), rand(4, 3).T
    with pytest.raises(ValueError, match="contiguous"):
        soft_target_loss_(student, teacher)
    with pytest.raises(ValueError, match="need no gradient"):
        soft_target_loss_(student, rand(3, 4).requires_grad_())
    with pytest.raises(ValueError, match="float32"):
        soft_target_loss_(student, rand(3, 4, dtype=torch.float32))
    assert torch.equal(teacher, rand(4, 3).T)


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        (((4, 3), (5, 2)), ((4, 3), (5, 3)), "student's hidden states"),
        (((4, 3), (5, 3)), ((4, 3), (6, 3)), "5 classes, the teacher"),
        (((4, 3), (5, 3)), ((3, 3), (5, 3)), r"\[3, 3\] and 5"),
    ],
)
def test_heads_that_disagree_are_refused(student, teacher, says):
    with pytest.raises(ValueError, match=says):
        soft_target_loss_from_hidden(tuple(rand(*each) for each in student), tuple(rand(*each) for each in teacher))


def test_attentions_that_disagree_are_refused_with_what_each_has():
    student, teacher = (
        QueriesAndKeys(rand(1, 2, 4, 3), rand(1, 2, 4, 3)),
        QueriesAndKeys(rand(1, 3, 4, 3), rand(1, 3, 4, 3)),
    )
    with pytest.raises(ValueError, match=r"2 heads, 4 queries and 4 keys, the teacher's 1, 3, 4 and 4"):
        attention_transfer_loss_from_queries(student, teacher)


def peak(function):
    """Most bytes that were allocated at once during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    level = highest = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            highest = max(highest, level)
    return highest


def test_memory_stays_a_fraction_of_one_tensor_of_logits():
    rows, classes = 1024, 4096
    one = rows * classes * 4
    student = rand(rows, classes, dtype=torch.float32).requires_grad_()
    held = [rand(rows, classes, seed=1, dtype=torch.float32)]
    assert peak(lambda: soft_target_loss(student, held[0]).backward()) > 3 * one
    student.grad = None
    # What nobody else holds becomes the gradient.
    assert peak(lambda: soft_target_loss_(student, held.pop()).backward()) < 0.15 * one
    hidden, weight = (rand(length, 32, dtype=torch.float32).requires_grad_() for length in (rows, classes))
    heads = (hidden.detach().clone(), weight.detach() + 1.0)
    assert peak(lambda: soft_target_loss_from_hidden((hidden, weight), heads).backward()) < 0.25 * one
