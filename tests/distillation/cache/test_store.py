"""A folder of shards: what is there is what was written, whoever died while writing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lightning_optim.distillation.cache.frame import make_frame
from lightning_optim.distillation.cache.store import AnswerStore
from lightning_optim.errors import ArtefactError
from support import same


def opened(folder):
    return AnswerStore(folder, lambda _: None)


def key(number):
    return number.to_bytes(16, "big")


def answer(number):
    return torch.full((3,), float(number))


def write(folder, *batches):
    store = opened(folder)
    for batch in batches:
        tensors = {"logits": torch.stack([answer(number) for number in batch]), "id": torch.tensor(batch)}
        store.put([key(number) for number in batch], tensors)
        store.flush({"who": "me"})
    store.close()


def test_later_stores_find_what_was_written(tmp_path):
    write(tmp_path, [1, 2], [3])
    write(tmp_path, [4])
    store = opened(tmp_path)
    assert len(store) == 4
    assert store.find([key(3), key(9), key(4)]) == [True, False, True]
    found = store.read([key(4), key(1)])
    assert same(found, {"logits": torch.stack([answer(4), answer(1)]), "id": torch.tensor([4, 1])})
    assert len(list(tmp_path.glob("*.answers"))) == 2


def test_a_store_reads_what_it_has_just_written_and_what_others_write_meanwhile(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    for number, store in enumerate([first, second, first]):
        store.put([key(number)], {"logits": answer(number)[None]})
        assert same(store.read([key(number)]), {"logits": answer(number)[None]})
        store.flush({})
        assert same(store.read([key(number)]), {"logits": answer(number)[None]})
    assert second.find([key(0)]) == [False]
    second.refresh()
    assert second.find([key(0), key(2)]) == [True, True]


def test_a_shard_cut_at_any_byte_holds_whole_records_alone(tmp_path):
    write(tmp_path, [1, 2], [3], [4, 5])
    (shard,) = tmp_path.glob("*.answers")
    whole, counts = shard.read_bytes(), set()
    for cut in range(len(whole) + 1):
        shard.write_bytes(whole[:cut])
        store = opened(tmp_path)
        there = [number for number in range(1, 6) if store.find([key(number)]) == [True]]
        counts.add(tuple(there))
        for number in there:
            assert same(store.read([key(number)])["logits"], answer(number)[None])
    assert counts == {(), (1, 2), (1, 2, 3), (1, 2, 3, 4, 5)}


@pytest.mark.parametrize("from_end", [1, 12, 30])
def test_records_that_are_not_what_was_written_count_as_missing(from_end, tmp_path):
    write(tmp_path, [1, 2], [3])
    (shard,) = tmp_path.glob("*.answers")
    data = bytearray(shard.read_bytes())
    data[-from_end] ^= 0xFF
    shard.write_bytes(data)
    assert opened(tmp_path).find([key(1), key(2), key(3)]) == [True, True, False]


WRITER = """
import pathlib, sys, torch
from lightning_optim.distillation.cache.store import AnswerStore
store = AnswerStore(pathlib.Path(sys.argv[1]), lambda _: None)
for number in range(10**9):
    tensors = {"logits": torch.full((1, 200000), float(number))}
    store.put([number.to_bytes(16, "big")], tensors)
    store.flush({})
"""


def written(folder):
    return sum(path.stat().st_size for path in folder.glob("*.answers"))


def test_a_writer_that_is_killed_leaves_whole_records(tmp_path):
    path = os.pathsep.join(filter(None, sys.path))
    for number in range(3):
        folder, deadline = tmp_path / str(number), time.monotonic() + 60
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}) as writer:
            while written(folder) < 5_000_000:
                assert time.monotonic() < deadline
            writer.send_signal(signal.SIGKILL)
        store = opened(folder)
        assert len(store) >= 3
        for each in range(len(store)):
            assert (store.read([key(each)])["logits"] == each).all()
        write(folder, [10**6])
        assert opened(folder).find([key(10**6), key(0)]) == [True, True]


def test_files_of_another_version_are_refused(tmp_path):
    (tmp_path / "old.answers").write_bytes(make_frame({"version": 0}))
    with pytest.raises(ArtefactError, match=r"old.answers holds answers in version 0 .* this is version 1; delete it"):
        opened(tmp_path)


SHORT = make_frame({"version": 1}) + make_frame({"samples": 1, "layout": []}, b"?")


@pytest.mark.parametrize("data", [b"\x80\x04\x95 a pickle", SHORT])
def test_what_holds_no_answers_is_refused(data, tmp_path):
    (tmp_path / "odd.answers").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"odd.answers cannot be read as a teacher's answers"):
        opened(tmp_path)


def test_a_lack_is_an_error_only_where_all_shards_have_it(tmp_path):
    write(tmp_path, [1])
    with pytest.raises(ArtefactError, match="no temperature; give another folder"):
        AnswerStore(tmp_path, lambda _: "no temperature")
    store = opened(tmp_path)
    store.put([key(2)], {"logits": answer(2)[None]})
    store.flush({"who": "other"})
    store.mark_complete(2)
    store.close()
    some = AnswerStore(tmp_path, lambda head: None if head["who"] == "other" else "no temperature")
    assert some.find([key(1), key(2)]) == [False, True]
    assert opened(tmp_path).is_complete
    assert not some.is_complete


def test_an_epoch_is_complete_for_later_stores(tmp_path):
    store = opened(tmp_path)
    assert not store.is_complete
    store.mark_complete(7)
    assert opened(tmp_path).num_samples_of_epoch == store.num_samples_of_epoch == 7
    assert json.loads((tmp_path / "complete.json").read_text()) == {"samples": 7}
    (tmp_path / "complete.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"complete.json cannot be read; delete it"):
        opened(tmp_path)


def test_records_of_other_shapes_do_not_stand_in_one_batch(tmp_path):
    store = opened(tmp_path)
    store.put([key(1)], {"logits": torch.zeros(1, 3, 5)})
    store.put([key(2)], {"logits": torch.zeros(1, 4, 5)})
    with pytest.raises(ValueError, match=r"other shapes, logits \[3, 5\] and logits \[4, 5\]: .* padded to one length"):
        store.read([key(1), key(2)])


def test_what_is_not_flushed_is_not_written(tmp_path):
    store = opened(tmp_path)
    store.put([key(1)], {"logits": answer(1)[None]})
    assert store.find([key(1)]) == [True]
    store.close()
    assert not list(tmp_path.iterdir())
