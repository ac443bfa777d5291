"""Each model of the main job suits each of its data sets, by their names alone."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import lightning_optim.conf
from lightning_optim.cli.build import build_module

CONF = Path(lightning_optim.conf.__path__[0]) / "lightning_optim"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "custom")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("data", "size"), [("digits", 16), ("fashion_mnist", 28)])
def test_a_model_takes_the_images_of_the_data(data, size, model):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", [f"data={data}", f"model={model}"])
    module = build_module(config.model).eval()
    with torch.no_grad():
        assert module(torch.zeros(1, 1, size, size)).shape == (1, 10)
