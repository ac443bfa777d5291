from pathlib import Path

import pytest

from support import run_script


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_go_back_rewind_and_regrow_alike(tmp_path, ranks):
    done = run_script(Path(__file__).with_name("on_ranks.py"), ranks, cwd=tmp_path, timeout=560)
    said = [tuple(line.split()) for line in done.stdout.splitlines() if line.startswith(("until", "regrow", "rewind"))]
    until = [(f"until-{label}", "equal", "0.4") for label in ("weight", "update", "end", "never")]
    search = ("until-search", "equal", "0.533333")  # little was missing: two thirds of the way
    regrow = [("regrow-random", "equal", "0.6"), ("regrow-gradient", "equal", "0.6")]
    assert sorted(said) == sorted(ranks * [*until, search, *regrow, ("rewind", "equal", "0.5")])
