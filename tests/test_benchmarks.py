import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=250, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_overhead_measures_every_callback():
    printed = run("-m", "benchmarks.overhead", "--steps", "2", "--rounds", "1")
    found = json.loads(printed.splitlines()[-1])["variants"]
    assert {"plain", "control", "pruning masks", "quantization simulated", "supernet"} < found.keys()
    assert all(row["ms"] > 0.0 for row in found.values())


def test_a_reports_latency_beside_two_busy_processes_is_the_idle_one_or_is_not_decided():
    printed = run("-m", "benchmarks.latency", "--rounds", "1", "--seconds", "0.5", "--beside", "spin")
    busy = json.loads(printed.splitlines()[-1])["spin"]
    for file in ("half_b1", "half_b32", "int8_b1", "int8_b32"):
        assert busy[f"{file}_speedup"] > 1.0
        assert busy[f"{file}_undecided"] or busy[f"{file}_shift"] < 0.1


def test_all_others_can_be_imported():
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")
    assert "pruning_accuracy" in names
    run("-c", "import " + ", ".join(f"benchmarks.{name}" for name in names))


def test_coverage_leaves_lightning_and_with_it_torchvision_unimported():
    run("-c", "import sys, benchmarks.coverage; assert not {'lightning', 'torchvision'} & sys.modules.keys()")


@pytest.mark.slow
def test_search_measures_tables_of_any_space_and_says_what_it_cannot(tmp_path):
    cells = np.array(["".join(map(str, digits)) for digits in itertools.product(range(2), range(3), range(3))])
    columns = {
        "cell": cells,
        "val_accuracy_200": 90.0 - np.arange(18.0),
        "latency_ms__phone": 1.0 + np.arange(18.0) % 5,
    }
    np.savez(tmp_path / "small.npz", **columns)
    arguments = [
        "-m",
        "benchmarks.search",
        "--only",
        "tables",
        "--quick",
        "--tables",
        str(tmp_path),
        "--devices",
        "phone",
    ]
    found = json.loads(run(*arguments).splitlines()[-1])
    assert 1 <= found["evaluations_to_top_permille"] <= 18
    assert found["small/protocol_accuracy"] == "not measured: no column val_accuracy_12, train_seconds_200"
    assert found["protocol_accuracy"] is None
    assert found["hypervolume_200"] == pytest.approx(1.0)  # all of the space
    np.savez(tmp_path / "small.npz", **columns, names=np.array([{}], dtype=object))
    found = json.loads(run(*arguments).splitlines()[-1])
    assert "'names' must be plain numbers or text, and holds Python objects" in found["tables_failed"]
