from dataclasses import dataclass
from typing import Any

import pytest

from lightning_optim.distillation import FromBatch
from lightning_optim.errors import SampleError
from lightning_optim.surgery import Inputs


@dataclass
class Batch:
    ids: Any
    other: Any


@pytest.mark.parametrize(
    ("batch", "keys", "expected"),
    [
        ((1, 2, 3), [2], Inputs((3,))),
        ([1, [2, 3]], ["1.0", 0], Inputs((2, 1))),
        ({"ids": 1, "other": {"ids": 2}}, ["other.ids"], Inputs((2,))),
        ({"a.b": 1}, ["a.b"], Inputs((1,))),
        (
            {"ids": 1, "mask": 2},
            {"input_ids": "ids", "attention_mask": "mask"},
            Inputs((), {"input_ids": 1, "attention_mask": 2}),
        ),
        (Batch(1, {"x": 2}), {"x": "other.x"}, Inputs((), {"x": 2})),
    ],
)
def test_entries_are_found_in_any_batch(batch, keys, expected):
    assert FromBatch(keys=keys)(Inputs(("the student's",)), batch) == expected


@pytest.mark.parametrize(
    ("batch", "key", "message"),
    [
        ({"ids": 1}, "id", "batch's 'id', but a dict holds 'ids': set keys of FromBatch"),
        ((1, 2), 2, "batch's 2, but a tuple holds 0, 1"),
        (3, "ids", "a int holds no entries"),
    ],
)
def test_entry_that_is_not_there_is_refused_by_name(batch, key, message):
    with pytest.raises(SampleError, match=message):
        FromBatch(keys=[key])(Inputs(), batch)


def test_no_key_is_refused():
    with pytest.raises(ValueError, match="at least one entry"):
        FromBatch(keys=[])
