"""Two ranks end equal, whatever the callback did to the model; or it says that it cannot."""

import shutil
import tempfile
from pathlib import Path

import pytest

from support import run_script


def launch(kind, folder, labels):
    with tempfile.TemporaryDirectory() as temporary:
        # Without what other laws have kept of a teacher's answers, which are to other samples.
        folder = shutil.copytree(folder, Path(temporary) / "teachers", ignore=shutil.ignore_patterns("answers"))
        done = run_script(Path(__file__).with_name("two_ranks.py"), kind, folder, *labels, cwd=folder, timeout=560)
    said = {}
    for line in done.stdout.splitlines():
        label, _, verdict = line.partition(" ")
        if label in labels:
            said.setdefault(label, []).append(verdict)
    return said


DEFAULTS = [
    "batch_mixer-default",
    "distillation_teacher-default",
    "dropout_scheduler-default",
    "nas_supernet-default",
    "penalty_regularizer-default",
    "pruning_scheduler-default",
    "qat_fake_quant-default",
    "sharpness_aware-default",
]
CHANNELS = "pruning_scheduler-structure-channel"
CHOICE = "nas_supernet-space.entry-operation_choice"
EMA = "distillation_teacher-teacher-ema"
INPUT = "nas_supernet-space.entry-input_choice"
LEARNED = "nas_supernet-sampler-gdas"
MORE = [
    EMA,
    INPUT,
    LEARNED,
    "pruning_scheduler-criterion-mean_activation",
    "pruning_scheduler-allocation-global_threshold",
]


def test_ranks_end_equal_under_ddp(teachers):
    labels = [*DEFAULTS, CHANNELS, *MORE]
    assert launch("ddp", teachers, labels) == {label: ["equal"] * 2 for label in labels}


def test_ranks_end_equal_under_fsdp2_or_it_is_refused(teachers):
    """What cuts or slices whole weights cannot work on parts of them, and says so."""
    whole = [
        "batch_mixer-default",
        "distillation_teacher-default",
        "dropout_scheduler-default",
        "pruning_scheduler-default",
        "qat_fake_quant-default",
        CHOICE,
    ]
    parted = [CHANNELS, EMA, "nas_supernet-default", "penalty_regularizer-default", "sharpness_aware-default"]
    said = launch("fsdp2", teachers, [*whole, *parted])
    for label in parted:
        verdicts = said.pop(label)
        assert len(verdicts) == 2
        assert all("each rank holds a part of every weight; use" in verdict for verdict in verdicts)
    assert said == {label: ["equal"] * 2 for label in whole}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_every_leaf_ends_equal_on_two_ranks(kind, teachers, kit):
    labels = [case.label for case in kit.cases()]
    said = launch(kind, teachers, labels)
    assert said.keys() == set(labels)
    refusal = "each rank holds a part of every weight"
    odd = {label for label, verdicts in said.items() if verdicts != ["equal"] * 2}
    assert all(refusal in verdict for label in odd for verdict in said[label])
    assert not odd or kind == "fsdp2"
