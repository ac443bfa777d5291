import numpy as np
import pytest
import torch
from torch import nn

from lightning_optim.errors import ArtefactError
from lightning_optim.export import export_onnx, load_session, time_models


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runtime")
    small = nn.Linear(16, 4)
    large = nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    return {
        name: export_onnx(net, (torch.rand(2, 16),), folder / f"{name}.onnx")
        for name, net in {"small": small, "large": large}.items()
    }


def test_predict_joins_batches(files):
    session = load_session(files["small"])
    rows = torch.rand(5, 16)
    np.testing.assert_array_equal(session.predict(rows.split(2)), session.run(rows)[0])


def test_a_larger_model_takes_longer_and_a_larger_batch_too(files):
    times = time_models(files, np.random.rand(3, 16).astype(np.float32), (1, 256), seconds=0.1)
    assert set(times) == {"small", "large"}
    assert times["small"][1].cpu_ms < times["large"][1].cpu_ms < times["large"][256].cpu_ms


def test_cpu_time_is_measured_beside_the_clock(files):
    timing = time_models({"large": files["large"]}, np.zeros((1, 16), np.float32), (256,), seconds=0.05)["large"][256]
    assert 0.0 < timing.cpu_ms <= timing.wall_ms * 1.2


def test_rows_are_repeated_up_to_the_batch(files):
    rows = np.arange(48, dtype=np.float32).reshape(3, 16)
    (resized,) = load_session(files["small"]).resize(rows, 7)
    assert resized.shape == (7, 16)
    np.testing.assert_array_equal(resized[3:6], rows)


def test_wrong_number_of_inputs_is_named(files):
    with pytest.raises(ValueError, match="takes 1 inputs"):
        load_session(files["small"]).run()


def test_missing_and_corrupt_files_say_so_in_one_line(tmp_path, files):
    with pytest.raises(ArtefactError, match="no ONNX model at"):
        load_session(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(files["small"].read_bytes()[:100])
    with pytest.raises(ArtefactError, match="is not a model") as caught:
        load_session(broken)
    assert "\n" not in str(caught.value)
