"""A frame is read whole or not at all, wherever the file ends."""

import pytest

from lightning_optim.distillation.cache.frame import make_frame, read_frames
from lightning_optim.errors import ArtefactError

FRAMES = [make_frame({"n": 1}, b"first"), make_frame({"n": 2}), make_frame({"n": 3, "text": "ä"}, b"\x00" * 40)]


def test_a_file_cut_at_any_byte_gives_the_frames_before_the_cut():
    data = b"".join(FRAMES)
    ends = [sum(map(len, FRAMES[: count + 1])) for count in range(3)]
    for cut in range(len(data) + 1):
        found = list(read_frames(data[:cut]))
        assert [frame.end for frame in found] == [end for end in ends if end <= cut]
        assert all(frame.is_sound(data[:cut]) for frame in found)


def test_reading_goes_on_where_it_stopped():
    first, *_ = read_frames(FRAMES[0])
    assert [frame.head["n"] for frame in read_frames(b"".join(FRAMES), first.end)] == [2, 3]


@pytest.mark.parametrize("place", range(28, len(FRAMES[0])))
def test_no_changed_byte_is_taken_for_what_was_written(place):
    data = bytearray(b"".join(FRAMES))
    data[place] ^= 0x20
    found = list(read_frames(bytes(data)))
    assert not found or not found[0].is_sound(bytes(data))


@pytest.mark.parametrize("data", [b"PK\x03\x04 a zip", b"LOANSWEX", b"{}", FRAMES[0] + b"rest"])
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(ArtefactError, match="no answers of a teacher"):
        list(read_frames(data))


def test_a_part_of_the_first_word_is_a_frame_that_was_not_finished():
    assert list(read_frames(b"LOAN")) == list(read_frames(b"")) == []
