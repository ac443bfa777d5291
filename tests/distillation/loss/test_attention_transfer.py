"""Number formats of attention transfer; its formula is tested where attention is recorded, and in its kernel."""

import math

import pytest
import torch
from by_hand import rand

from lightning_optim.distillation import AttentionTransfer
from lightning_optim.distillation.kernel.attention import QueriesAndKeys


def by_hand(attentions, heads):
    """From logits that are products in the number format of queries and keys, all else in Python's floats."""
    student, teacher = (
        [[[[math.exp(value / 2.0) for value in row] for row in head] for head in sample] for sample in logits]
        for logits in ((each.query @ each.key.mT).tolist() for each in attentions)
    )
    rows = []
    for mine, theirs in zip(student, teacher, strict=True):
        for query in range(3):
            both = [[[e / sum(head[query]) for e in head[query]] for head in each] for each in (mine, theirs)]
            if heads == "mean":
                both = [[[sum(column) / 2 for column in zip(*each, strict=True)]] for each in both]
            rows += [sum(q * math.log(q / p) for p, q in zip(*pair, strict=True)) for pair in zip(*both, strict=True)]
    return sum(rows) / len(rows)


@pytest.mark.parametrize("heads", ["each", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_softmaxes_are_computed_in_float32_whatever_autocast_says(heads, dtype):
    both = [QueriesAndKeys(*(rand(2, 2, 3, 4, seed=seed + of).to(dtype) for of in (0, 10))) for seed in (0, 1)]
    expected = by_hand(both, heads)
    with torch.autocast("cpu", torch.bfloat16):
        found = AttentionTransfer(student="net.attend", heads=heads).compare(*both, None)
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_query_that_sees_no_key_adds_nothing_to_the_mean_of_heads_and_one_that_is_no_number_shows():
    mask = torch.zeros(1, 1, 3, 3)
    mask[..., 1, :] = -math.inf
    query, key = rand(1, 2, 3, 4).requires_grad_(), rand(1, 2, 3, 4, seed=1)
    teacher = QueriesAndKeys(rand(1, 2, 3, 4, seed=2), key, mask)
    compare = AttentionTransfer(student="net.attend", heads="mean").compare
    compare(QueriesAndKeys(query, key, mask), teacher, None).backward()
    assert query.grad.isfinite().all()
    assert not query.grad[..., 1, :].any()
    with torch.no_grad():
        query[0, 0, 2, 0] = math.nan
    assert compare(QueriesAndKeys(query, key, mask), teacher, None).isnan()
