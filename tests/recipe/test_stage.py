"""What a recipe asks of a callback is what the callback can do, not its class."""

import pytest
from lightning.pytorch import Callback
from torch import nn

from lightning_optim import DistillationTeacher, PruningScheduler, QATFakeQuant
from lightning_optim.demo import Classifier, Digits, ResidualNet
from lightning_optim.export import export_onnx
from lightning_optim.recipe import Metrics
from lightning_optim.recipe.evaluate import StageWriter, evaluate
from lightning_optim.recipe.stage import CuttingCallback, ExportingCallback
from lightning_optim.schedule import Iterative
from support import quiet


@pytest.mark.parametrize(
    ("callback", "cuts", "exports"),
    [
        (PruningScheduler(schedule=Iterative(end=0.5, rounds=2)), True, False),
        (QATFakeQuant(), False, True),
        (DistillationTeacher(teacher=nn.Linear(1, 1)), False, False),
        (Callback(), False, False),
    ],
)
def test_what_each_callback_can_do(callback, cuts, exports):
    assert isinstance(callback, CuttingCallback) == cuts
    assert isinstance(callback, ExportingCallback) == exports


class Exporter(Callback):
    """A callback of no class that the package knows."""

    def export(self, path, model, args, kwargs, fallbacks, *, dynamic, batch):
        self.written, self.fallbacks = path, fallbacks
        export_onnx(model.net, args, path, kwargs=kwargs)


def test_the_file_of_a_stage_is_written_by_the_callback_that_exports(tmp_path):
    module = Classifier(ResidualNet(widths=(4, 8)), memory_format="contiguous")
    exporter, path = Exporter(), tmp_path / "model.onnx"
    make_trainer = lambda extra: quiet(*extra, limit_val_batches=1, limit_test_batches=1)  # noqa: E731  # one use
    data = Digits(batch_size=32, resolution=8)
    writer = StageWriter(callbacks=[Callback(), exporter], fallbacks="refused")
    result = evaluate("base", make_trainer, module, data, writer, path, metrics=Metrics(), network="net")
    assert (exporter.written, exporter.fallbacks) == (path, "refused")
    assert result.integer_share is None  # what this callback writes is not known to be integers
