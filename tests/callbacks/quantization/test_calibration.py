"""``QATFakeQuant.calibrate``: from a trained module to an int8 one, without training."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import QATFakeQuant, Targets
from lightning_optim.quantization import BiasCorrection, CrossLayerEqualization, MinMax, PostTraining, Symmetric
from support import quiet, same


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, *, tokens, mask):
        states = torch.relu(self.body(self.embed(tokens))) * mask.unsqueeze(-1)
        return {"logits": self.head(states.sum(1))}


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()

    def validation_step(self, batch, _):
        tokens, mask, y = batch
        self.log("accuracy", (self.net(tokens=tokens, mask=mask)["logits"].argmax(1) == y).float().mean())

    def training_step(self, batch, _):
        tokens, mask, y = batch
        return nn.functional.cross_entropy(self.net(tokens=tokens, mask=mask)["logits"], y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def dataset(rows=24):
    torch.manual_seed(1)
    return TensorDataset(torch.randint(7, (rows, 5)), torch.ones(rows, 5), torch.randint(3, (rows,)))


def loader(rows=24):
    return DataLoader(dataset(rows), 8)


class Data(LightningDataModule):
    def val_dataloader(self):
        return loader()


@pytest.mark.parametrize("data", [loader(), Data()])
def test_a_module_that_names_its_inputs_is_calibrated_by_its_own_validation(data):
    module, callback = Module(), QATFakeQuant(observer=MinMax())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    callback.calibrate(module, data)
    assert callback.is_simulating
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    tokens, mask, _ = dataset()[:]
    simulated, plain = callback.simulated()(tokens=tokens, mask=mask), module.net(tokens=tokens, mask=mask)
    gap = (simulated["logits"] - plain["logits"]).abs().max()
    assert 0 < gap < 0.05 * plain["logits"].abs().max()


def test_what_was_calibrated_is_validated_and_exported_without_training(tmp_path):
    module, callback = Module(), QATFakeQuant()
    callback.calibrate(module, loader(8))
    done = callback.export(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").exists()
    assert done is not None
    quiet(callback, default_root_dir=tmp_path).validate(module, loader(), verbose=False)


def test_training_goes_on_from_what_was_calibrated(tmp_path):
    module, callback = Module(), QATFakeQuant(freeze={"observer": 0.0})
    callback.calibrate(module, loader())
    before = callback.describe()
    quiet(callback, default_root_dir=tmp_path, max_epochs=1).fit(module, loader())
    assert callback.describe() == before


def test_a_network_alone_takes_mappings():
    tokens, mask, _ = dataset()[:]
    callback = QATFakeQuant(targets=Targets(exclude=["head"]))
    callback.calibrate(Module().net, [{"tokens": tokens, "mask": mask}])
    assert callback.is_simulating
    assert "left out by targets" in callback.describe()


def test_wrong_data_leaves_what_was_learned():
    module, callback = Module(), QATFakeQuant()
    callback.calibrate(module, loader())
    before = callback.describe()
    tokens, mask, _ = dataset()[:]
    for bad in ([], [{"tokens": tokens, "mask": mask * float("nan")}]):
        with pytest.raises(ValueError, match="calibrat"):
            callback.calibrate(module.net, bad)
    assert callback.describe() == before


def test_methods_change_the_weights_and_bring_the_outputs_nearer():
    tokens, mask, _ = dataset()[:]
    gaps = []
    for methods in ([], [CrossLayerEqualization(), BiasCorrection()]):
        module = Module()
        wanted = module.net(tokens=tokens, mask=mask)["logits"]
        callback = QATFakeQuant(observer=MinMax(), weight_quantizer=Symmetric(bits=3))
        callback.calibrate(module, loader(), methods=methods)
        gaps.append((callback.simulated()(tokens=tokens, mask=mask)["logits"] - wanted).mean(0).abs().max())
    assert gaps[1] < 0.2 * gaps[0]


def test_a_method_that_fails_leaves_all_as_it_was():
    class Breaks(PostTraining):
        def apply(self, network, simulator, batches):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.zero_()
            raise RuntimeError("broken")

    module, callback = Module(), QATFakeQuant()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="broken"):
        callback.calibrate(module, loader(), methods=[BiasCorrection(), Breaks()])
    assert same(before, dict(module.state_dict()))
    assert not callback.is_simulating
