"""The union-find."""

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lightning_optim.graph.labels import Labels


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_the_connected_components(seed):
    random, labels = np.random.default_rng(seed), Labels()
    axis = labels.fresh(400)
    edges = []
    for _ in range(6):
        one, other = random.integers(0, 400, (2, 50))
        labels.unite(one, other)
        edges.append((one, other))
    rows, columns = (np.concatenate(side) for side in zip(*edges, strict=True))
    _, component = connected_components(coo_array((np.ones(300), (rows, columns)), shape=(400, 400)), directed=False)
    roots = labels.find(axis)
    assert ((roots[:, None] == roots) == (component[:, None] == component)).all()


def test_one_frozen_label_freezes_its_class():
    labels = Labels()
    one, other = labels.fresh(3), labels.fresh(3)
    labels.freeze(one[:1])
    labels.unite(one, other)
    labels.mark_normalized(other[2:])
    assert labels.is_frozen(other).tolist() == [True, False, False]
    assert labels.is_normalized(one).tolist() == [False, False, True]


def test_labels_survive_growth():
    labels = Labels()
    first = labels.fresh(2)
    labels.unite(first[:1], first[1:])
    later = labels.fresh(5000)
    assert labels.find(first).tolist() == [0, 0]
    assert len(np.unique(labels.find(later))) == 5000


def test_axes_of_other_lengths_cannot_be_united():
    labels = Labels()
    with pytest.raises(ValueError, match="got 2 and 3"):
        labels.unite(labels.fresh(2), labels.fresh(3))
