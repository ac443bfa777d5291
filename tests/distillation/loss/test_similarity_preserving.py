import math

import pytest
from by_hand import rand

from lightning_optim.distillation import SimilarityPreserving
from lightning_optim.errors import SampleError


def similarities(features):
    rows = features.flatten(1).tolist()
    products = [[sum(a * b for a, b in zip(first, second, strict=True)) for second in rows] for first in rows]
    return [[value / math.hypot(*row) for value in row] for row in products]


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 3), (4, 5)), ((3, 2, 4, 4), (3, 5, 2, 2)), ((3, 5, 2), (3, 7, 4))]
)
def test_it_is_the_formula_whatever_the_layout(student, teacher):
    student, teacher = rand(*student), rand(*teacher, seed=1)
    pairs = zip(similarities(student), similarities(teacher), strict=True)
    total = sum((a - b) ** 2 for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))
    found = SimilarityPreserving(student="a").compare(student, teacher, None)
    assert float(found) == pytest.approx(total / len(student) ** 2, rel=1e-4)


def test_a_batch_of_one_is_refused():
    with pytest.raises(SampleError, match="SimilarityPreserving compares samples with each other and needs at least 2"):
        SimilarityPreserving(student="a").compare(rand(1, 3), rand(1, 3), None)
