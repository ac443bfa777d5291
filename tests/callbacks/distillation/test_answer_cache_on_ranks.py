"""Ranks write shards of their own and read those of all."""

from pathlib import Path

from support import run_script


def test_each_sample_is_asked_for_once_by_all_ranks_together(tmp_path):
    done = run_script(Path(__file__).with_name("cache_on_ranks.py"), tmp_path, cwd=tmp_path)
    labels = ("first", "second", "top", "augmented")
    said = sorted(line for line in done.stdout.splitlines() if line.startswith(labels))
    expected = ["first equal asked 40", "second equal asked 0", "top equal asked 40", "augmented refused: 10"]
    assert said == sorted(expected * 2)
    assert len(list((tmp_path / "None").glob("*.answers"))) == 2
