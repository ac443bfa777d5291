"""Losses as a command line describes them."""

from pathlib import Path

from hydra import compose, initialize_config_dir

import lightning_optim.conf
from lightning_optim.cli.build import build
from lightning_optim.distillation import VID, AttentionMap, SoftTarget
from lightning_optim.schedule import Linear

TEACHER = "callbacks.distillation_teacher"
OPTION = "+lightning_optim/distillation/loss@callbacks.distillation_teacher.losses"


def callback(*overrides):
    with initialize_config_dir(str(Path(lightning_optim.conf.__path__[0])), version_base="1.3"):
        found = compose(
            overrides=["+callbacks=distillation_teacher", f"{TEACHER}.teacher.path=teacher.ckpt", *overrides]
        )
    return build(found.callbacks.distillation_teacher)


def test_several_losses_have_a_key_and_a_weight_each():
    found = callback(
        f"{OPTION}.maps=attention_map",
        f"{TEACHER}.losses.maps.student=net.blocks.*",
        f"{OPTION}.vid=vid",
        f"{TEACHER}.losses.vid.student=[net.stem,net.blocks.1]",
        f"{TEACHER}.weight={{soft_target: 0.5, maps: 30, vid: 1}}",
    )
    assert found.losses == {
        "soft_target": SoftTarget(),
        "maps": AttentionMap(student="net.blocks.*"),
        "vid": VID(student=["net.stem", "net.blocks.1"]),
    }
    assert found.weight == {"soft_target": 0.5, "maps": 30.0, "vid": 1.0}


def test_a_temperature_may_be_a_schedule():
    schedule = "{_target_: lightning_optim.schedule.Linear, start: 8.0, end: 2.0}"
    found = callback(f"{TEACHER}.losses.soft_target.temperature={schedule}")
    assert found.losses["soft_target"] == SoftTarget(temperature=Linear(start=8.0, end=2.0))
    assert found.window is not None
