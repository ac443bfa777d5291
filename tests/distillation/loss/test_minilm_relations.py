import math

import pytest
import torch
from by_hand import CONTEXT, rand

from lightning_optim.distillation import MiniLMRelations, Observation


def relations(tokens, heads):
    """Of one sample without padding: for each head and token, how the tokens relate."""
    width = len(tokens[0]) // heads
    found = []
    for head in range(heads):
        parts = [token[head * width : (head + 1) * width] for token in tokens]
        for query in parts:
            scores = [sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(width) for key in parts]
            powers = [math.exp(score) for score in scores]
            found.append([power / sum(powers) for power in powers])
    return found


def by_hand(student, teacher, heads):
    """Divergences of all samples, heads and tokens."""
    terms = []
    for mine, theirs in zip(student, teacher, strict=True):
        for p, q in zip(relations(mine, heads), relations(theirs, heads), strict=True):
            terms.append(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)))
    return terms


@pytest.mark.parametrize("heads", [1, 2])
def test_it_is_the_formula_whatever_the_widths(heads):
    student, teacher = rand(3, 5, 4), rand(3, 5, 6, seed=1)
    terms = by_hand(student.tolist(), teacher.tolist(), heads)
    found = MiniLMRelations(student="q", relation_heads=heads).compare(student, teacher, None)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_padding_is_neither_query_nor_key():
    mask, lengths = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]), (3, 2)
    features = [rand(3, 4, 4, seed=seed) for seed in range(4)]
    terms = []
    for mine, theirs in ((features[0], features[1]), (features[2], features[3])):
        cut = [[each[i, :length].tolist() for i, length in enumerate(lengths)] for each in (mine, theirs)]
        found = by_hand(*cut, 2)
        terms.append(sum(found) / len(found))
    student = Observation((), {"attention_mask": mask}, None, tuple(each.requires_grad_() for each in features[::2]))
    loss = MiniLMRelations(student=["q", "k"], relation_heads=2, mask="attention_mask")
    found = loss(student, Observation((), {}, None, tuple(features[1::2])), CONTEXT)
    assert found.item() == pytest.approx(sum(terms), rel=1e-4)
    found.backward()
    for each in student.features:
        assert each.grad.isfinite().all()
        assert not each.grad[~mask.bool()].any()


def test_heads_that_divide_no_width_and_other_lengths_are_refused():
    loss = MiniLMRelations(student="q", relation_heads=4)
    with pytest.raises(ValueError, match="relation_heads=4 does not divide the 6 channels"):
        loss.compare(rand(2, 3, 8), rand(2, 3, 6), None)
    with pytest.raises(ValueError, match="the student has 3 of them in 2 samples and the teacher 5"):
        loss.compare(rand(2, 3, 8), rand(2, 5, 8), None)
    with pytest.raises(ValueError, match="several positions"):
        loss.compare(rand(2, 8), rand(2, 8), None)
    with pytest.raises(ValueError, match="relation_heads must be at least 1"):
        MiniLMRelations(student="q", relation_heads=0)
    call = Observation((), {"m": torch.ones(2, 4)}, None, (rand(2, 3, 8),))
    with pytest.raises(ValueError, match=r"mask has shape \[2, 4\], but the tokens \[2, 3\]"):
        MiniLMRelations(student="q", relation_heads=4, mask="m")(call, call, CONTEXT)
