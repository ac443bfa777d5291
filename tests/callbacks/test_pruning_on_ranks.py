import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_go_back_rewind_and_regrow_alike(tmp_path, ranks):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("pruning_on_ranks.py")), str(ranks)],
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [tuple(line.split()) for line in done.stdout.splitlines() if line.startswith(("until", "regrow", "rewind"))]
    until = [(f"until-{label}", "equal", "0.4") for label in ("weight", "update", "end", "never")]
    regrow = [("regrow-random", "equal", "0.6"), ("regrow-gradient", "equal", "0.6")]
    assert sorted(said) == sorted(ranks * [*until, *regrow, ("rewind", "equal", "0.5")])
