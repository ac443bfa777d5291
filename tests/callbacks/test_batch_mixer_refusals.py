"""What mixing cannot do is refused by name, before a weight has changed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import BatchMixer
from lightning_optim.errors import SampleError, TapError, TargetError
from lightning_optim.regularization import CutMix, LabelSmoothing, Mixup
from lightning_optim.schedule import Linear
from mixing_by_hand import ManualSoft, Module, Segments, TakesSoft, data, fit, mixer, segments, tensors
from support import quiet, same

pytestmark = pytest.mark.filterwarnings("ignore")


def refused(module, callback, says, error=SampleError, *, loader=None, **settings):
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    with pytest.raises(error, match=says):
        fit(module, callback, loader=loader, **settings)
    assert same(before, dict(module.named_parameters()))
    assert "training_step" not in vars(module)


def test_several_labels_are_named_and_masks_are_left_to_mixup():
    keys = {"label_keys": ["mask", "kind"]}
    refused(
        Segments(), mixer(CutMix(), **keys), "'mask' has a label for each pixel, .* use Mixup", loader=data(segments)
    )
    says = (
        r"any of \['kind', 'mask'\] may be the label; .*'x' \(float32 \[4, 1, 6, 6\]\).* name the labels in label_keys"
    )
    refused(Segments(), mixer(), says, loader=data(segments))


def test_labels_that_mixing_cannot_mix_are_refused_in_the_first_batch():
    x, y = tensors()

    def loader(*entries):
        return DataLoader(TensorDataset(*entries), batch_size=4)

    refused(Module(), mixer(), "no tensor of integers has a label for each sample", loader=loader(x, y.float()))
    refused(Module(), mixer(), r"any of \['1', '2'\] may be the label", loader=loader(x, y, y))
    refused(Module(), mixer(), "nothing to mix: no tensor in floating point has 4 samples", loader=loader(y))
    refused(Module(), mixer(label_keys=["kind"]), "label_keys names 'kind', but the batch holds '0' .float32")
    refused(Module(), mixer(input_keys=["1"], label_keys=["1"]), "the input '1' must have 4 samples")
    says = "'1' holds [3-9] to [3-9], but there are 3 classes from 0 on; use labels='mix_loss'"
    refused(TakesSoft(), mixer(labels="soft", num_classes=3), says, loader=loader(x, y + 3))
    counts = DataLoader([(x[:4], torch.tensor(3))], batch_size=None)
    refused(Module(), mixer(label_keys=[1]), r"\['1'\] must have one entry for each sample", loader=counts)


def test_a_step_that_float_labels_do_not_suit_is_refused_by_name_in_the_first_batch():
    class Strict(Module):
        def loss(self, logits, y):
            return F.nll_loss(logits.log_softmax(1), y)

    class Silent(Strict):
        def note(self, logits, y): ...

    says = r"training_step does not take the labels as probabilities \[B, 4\], with which it fails: .*labels='mix_loss'"
    refused(Silent(), mixer(labels="soft"), f"Silent.{says}")
    refused(Strict(), mixer(labels="soft", num_classes=4), f"Strict.{says}")


def test_a_step_that_cannot_run_twice_with_one_pass_is_refused():
    class Parts(Module):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.net.head(self.net.norm(self.net.stem(x)).mean((2, 3))), y)

    class Conditional(Module):
        def __init__(self):
            super().__init__()
            self.net.forward = lambda x, y: self.net.head(x.mean((2, 3)).expand(-1, 6)) + F.one_hot(y, 4)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(*batch), batch[1])

    class Outside(Module):
        def __init__(self):
            super().__init__()
            self.last = nn.BatchNorm1d(4)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.last(self.net(batch[0])), batch[1])

    class Reentrant(Module):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(checkpoint(self.net, batch[0].requires_grad_(), use_reentrant=True), batch[1])

    refused(Parts(), mixer(), "training_step did not call the network .* set network", TapError)
    refused(Conditional(), mixer(), "the network is given something that depends on them")

    class Teaching(Module):
        def __init__(self):
            super().__init__()
            self.slow = nn.Linear(6, 4).requires_grad_(False)

        def training_step(self, batch, batch_idx):
            for slow, own in zip(self.slow.parameters(), self.net.head.parameters(), strict=True):
                slow.data.lerp_(own.data, 0.1)
            return super().training_step(batch, batch_idx)

    class InPlace(Module):
        def loss(self, logits, y):
            return F.cross_entropy(logits.div_(2.0), y)

    refused(InPlace(), mixer(), "changes in place what the network has put out", TapError)
    with pytest.raises(
        SampleError, match=r"'slow\.weight' changes each time that training_step runs, which it does twice"
    ):
        fit(Teaching(), mixer(network="net"))
    refused(Outside(), mixer(network="net"), "'last.running_mean' changes each time that training_step runs")
    refused(Reentrant(), mixer(), "use_reentrant=False", TapError)
    manual = ManualSoft()
    refused(manual, mixer(), "under manual optimization .* use labels='soft' and set num_classes", ValueError)
    refused(manual, mixer(labels="soft"), "without num_classes, .* under manual optimization .*: set num", ValueError)


def test_a_compiled_module_is_refused_where_its_step_would_run_twice():
    module = Module()
    with pytest.raises(TargetError, match=r"which code of torch.compile cannot do: use labels='soft' .* or compile"):
        quiet(mixer(), max_epochs=1).fit(torch.compile(module, backend="eager"), data())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mixing": {}}, "at least one mixing"),
        ({"mixing": LabelSmoothing()}, r"set labels='soft', or .* nn.CrossEntropyLoss\(label_smoothing=...\)"),
        ({"labels": "hard"}, "labels must be 'mix_loss' or 'soft', got 'hard'"),
        ({"probability": 1.5}, r"probability must lie in \[0, 1\], got 1.5"),
        ({"probability": Linear(end=2.0)}, r"probability must lie in \[0, 1\]"),
        ({"probability": 0.0}, "nothing to do"),
        ({"num_classes": 1, "labels": "soft"}, "num_classes must be at least 2"),
        ({"num_classes": 4}, "num_classes has no effect with labels='mix_loss'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        BatchMixer(**{"mixing": Mixup()} | settings)


def test_two_mixers_are_refused():
    with pytest.raises(ValueError, match="two BatchMixers would mix what the other has mixed"):
        fit(Module(), mixer(name="a"), mixer(name="b"))
