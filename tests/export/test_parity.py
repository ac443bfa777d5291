import pytest
import torch
from torch import nn

from lightning_optim.errors import ExportError
from lightning_optim.export import check_parity, export_onnx


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "identity.onnx"
    return export_onnx(nn.Hardtanh(-9.0, 9.0), (torch.rand(2, 3),), path)


def test_numbers_worked_by_hand(identity):
    rows = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 5.0], [4.0, 0.0, 0.0]])

    def slightly_off(batch):
        changed = batch.clone()
        changed[0, 1] += 0.25  # same winner
        return changed.flip(1) if batch[0, 0] == 0.0 else changed

    parity = check_parity(slightly_off, identity, [rows[:1], rows[2:3], rows[3:]])
    assert parity.num_samples == 3
    assert parity.top1_agreement == pytest.approx(2 / 3)
    assert parity.max_abs_error == pytest.approx(5.0)
    assert parity.exact_fraction == pytest.approx((2 + 0 + 2) / 9)


def test_equal_models_agree_to_the_bit(identity):
    parity = check_parity(nn.Identity(), identity, torch.rand(6, 3).split(4))
    assert (parity.top1_agreement, parity.max_abs_error, parity.exact_fraction) == (1.0, 0.0, 1.0)


def test_nan_is_an_error_that_shows(identity):
    parity = check_parity(lambda batch: batch * float("nan"), identity, [torch.rand(2, 3)])
    assert parity.max_abs_error != parity.max_abs_error
    assert parity.exact_fraction == 0.0


def test_other_shapes_and_no_batches_are_refused(identity):
    with pytest.raises(ExportError, match="outputs of shape"):
        check_parity(lambda batch: batch[:, :2], identity, [torch.rand(2, 3)])
    with pytest.raises(ExportError, match="at least one batch"):
        check_parity(nn.Identity(), identity, [])


def test_every_output_is_compared_and_named(tmp_path):
    class Heads(nn.Module):
        def forward(self, x):
            return {"logits": x, "extra": (x.sum(1), x[:, :1])}

    path = export_onnx(Heads(), (torch.rand(4, 3),), tmp_path / "heads.onnx")

    def off(x):
        return {"logits": x, "extra": (1.5 * x.sum(1), x[:, :1])}

    parity = check_parity(off, path, [torch.rand(4, 3)])
    assert [each.name for each in parity.outputs] == [
        "output['logits']",
        "output['extra'][0]",
        "output['extra'][1]",
    ]
    assert [round(each.relative_error, 4) for each in parity.outputs] == [0.0, 0.3333, 0.0]
    assert [each.top1_agreement for each in parity.outputs] == [1.0, None, None]
    assert (round(parity.relative_error, 4), parity.exact_fraction, parity.top1_agreement) == (0.3333, 0.0, 1.0)
