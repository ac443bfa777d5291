"""``kill -9`` in the middle, ``run=``, and the same end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORDS = [
    *(
        "model.network.widths=[4,8]",
        "model.memory_format=contiguous",
        "data.resolution=8",
        "latency_seconds=0.1",
        "deploy.aim=last",  # which file is the fastest can change from one measurement to the next
        "+trainer.limit_train_batches=6",
    ),
    *(f"recipe.stages.{stage}.trainer.max_epochs=2" for stage in ("base", "prune", "qat")),
    "recipe.order=[base,prune,qat,export]",
]

# The process kills itself where the second epoch of pruning begins: no hook, no handler, no flush.
KILLED = """
import os, signal, sys
from lightning_optim.cli.main import main
from lightning_optim.recipe import determinism
begin = determinism.EpochSeed.on_train_epoch_start
def on_train_epoch_start(self, trainer, pl_module):
    if self._stage == "prune" and trainer.current_epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin(self, trainer, pl_module)
determinism.EpochSeed.on_train_epoch_start = on_train_epoch_start
main()
"""


def stages(folder: Path) -> list[dict]:
    measured_anew = {"seconds", "latency_ms_b1", "latency_ms_b32"}
    report = json.loads((folder / "report.json").read_text())
    return [{key: value for key, value in stage.items() if key not in measured_anew} for stage in report["stages"]]


@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_goes_on_to_the_accuracies_weights_and_bytes_of_an_uninterrupted_one(call, tmp_path):
    assert call(*WORDS, "hydra.run.dir=whole").code == 0
    command = [sys.executable, "-c", KILLED, *WORDS, "hydra.run.dir=killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it
    killed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "report.json").exists()

    answer = call("run=killed")
    assert answer.code == 0, answer.err
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    assert stages(resumed) == stages(whole)
    assert all(len(stage["weights_sha256"]) == 64 for stage in stages(whole))
    assert (resumed / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()
    curves = "stages/1-prune/losses.json"
    assert (resumed / curves).read_bytes() == (whole / curves).read_bytes()
    assert {path.name for path in resumed.iterdir()} == {path.name for path in whole.iterdir()}
    assert not [path for path in resumed.rglob("*") if path.name.endswith(".tmp")]

    before = (resumed / "model.onnx").stat().st_mtime_ns
    assert call("run=killed").code == 0  # a finished run is only measured and reported again
    assert (resumed / "model.onnx").stat().st_mtime_ns == before
    assert call(*WORDS, "seed=1", "hydra.run.dir=killed").err.count("another configuration") == 1
