"""The README's example, run as it stands but for the number of epochs."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return code


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_the_readme_runs_and_its_file_answers_as_the_trained_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    # After fewer epochs two classes may lie on one integer, and either is the answer.
    exec(re.sub(r"max_epochs=\d+", "max_epochs=3", example()), names)  # noqa: S102  # our own README

    assert names["prune"].sparsity == pytest.approx(0.5, abs=0.03)
    images = next(iter(names["data"].test_dataloader()))[0]
    session = onnxruntime.InferenceSession("model.onnx")
    (deployed,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        trained = names["quantize"].simulated(names["model"])(images).numpy()
    step = np.diff(np.unique(deployed)).min()
    assert np.abs(deployed - trained).max() < 1.01 * step
    assert np.array_equal(deployed.argmax(1), trained.argmax(1))


def test_the_example_is_short():
    assert len([line for line in example().splitlines() if line.strip()]) <= 20


def test_the_first_pytest_line_is_the_whole_test_command():
    line = next(line for line in README.splitlines() if "-m pytest" in line)
    assert line.strip().removeprefix("$ ").startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert line.endswith("-m pytest")
