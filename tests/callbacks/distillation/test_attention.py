"""Attention of whoever's code: what is recorded, that nothing changes by it, and the loss against the formula."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention as attend  # bound before anything is recorded
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher, QATFakeQuant
from lightning_optim.distillation import AttentionTransfer, Hint
from lightning_optim.distillation.attention import AttentionTaps
from lightning_optim.distillation.kernel.attention import QueriesAndKeys
from lightning_optim.errors import TapError
from support import quiet

pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH, HEADS, LENGTH = 8, 2, 5


class OfTorch(nn.Module):
    """PyTorch's own layer, whose weights are asked for or not."""

    def __init__(self, **how):
        super().__init__()
        self.attention, self.how = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), how

    def forward(self, x):
        return self.attention(x, x, x, **self.how)[0]


class OfOnesOwn(nn.Module):
    """Queries of more heads than keys have, causal or with a mask."""

    def __init__(self, key_heads=HEADS, **how):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, 4 * heads) for heads in (HEADS, key_heads, key_heads))
        self.out, self.how = nn.Linear(4 * HEADS, WIDTH), how | {"enable_gqa": key_heads != HEADS}

    def forward(self, x):
        heads = [part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        return self.out(attend(*heads, **self.how).transpose(1, 2).flatten(2))


CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
LAYERS = {
    "torch": lambda: OfTorch(need_weights=False),
    "torch, weights": OfTorch,
    "torch, weights of heads": lambda: OfTorch(average_attn_weights=False),
    "torch, mask": lambda: OfTorch(need_weights=False, attn_mask=~CAUSAL),
    "torch, weights, mask": lambda: OfTorch(attn_mask=~CAUSAL),
    "own": OfOnesOwn,
    "own, causal": lambda: OfOnesOwn(is_causal=True),
    "own, mask": lambda: OfOnesOwn(attn_mask=CAUSAL),
    "own, bias": lambda: OfOnesOwn(attn_mask=torch.linspace(-1, 1, LENGTH**2).view(LENGTH, LENGTH), scale=0.4),
    "own, grouped": lambda: OfOnesOwn(key_heads=1),
}


def by_hand(layer, x):
    """Attention ``[B, H, Q, K]`` from the layer's weights, entry by entry."""
    if isinstance(layer, OfTorch):
        weight, bias = layer.attention.in_proj_weight, layer.attention.in_proj_bias
        query, key = x @ weight[:WIDTH].T + bias[:WIDTH], x @ weight[WIDTH : 2 * WIDTH].T + bias[WIDTH : 2 * WIDTH]
        is_seen = CAUSAL if "attn_mask" in layer.how else torch.ones_like(CAUSAL)
        bias = torch.zeros(LENGTH, LENGTH)
    else:
        query, key = layer.query(x), layer.key(x)
        mask = layer.how.get("attn_mask")
        is_causal = layer.how.get("is_causal") or (mask is not None and mask.dtype == torch.bool)
        is_seen = CAUSAL if is_causal else torch.ones_like(CAUSAL)
        bias = mask if mask is not None and mask.dtype != torch.bool else torch.zeros(LENGTH, LENGTH)
    scale = layer.how.get("scale", 0.5)  # heads of width 4
    groups = HEADS // (key.shape[-1] // 4)
    found = torch.zeros(len(x), HEADS, LENGTH, LENGTH)
    for sample in range(len(x)):
        for head in range(HEADS):
            first = 4 * (head // groups)
            for q in range(LENGTH):
                row = [
                    math.exp(
                        scale * float(query[sample, q, 4 * head : 4 * head + 4] @ key[sample, k, first : first + 4])
                        + float(bias[q, k])
                    )
                    * bool(is_seen[q, k])
                    for k in range(LENGTH)
                ]
                found[sample, head, q] = torch.tensor(row) / sum(row)
    return found


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("is_training", [True, False])
def test_what_is_recorded_is_the_attention_and_changes_nothing(make, is_training):
    torch.manual_seed(1)
    layer, x = make().train(is_training), rand(3, LENGTH, WIDTH)
    plain = layer(x)
    taps = AttentionTaps()
    taps.attach({"layer": layer})
    taps.open()
    assert torch.equal(layer(x), plain)
    (found,) = taps.take()["layer"]
    taps.remove()
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    (attention,) = found
    logits = attention.all_logits() if isinstance(attention, QueriesAndKeys) else attention
    torch.testing.assert_close(logits.softmax(-1), by_hand(layer, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("heads", ["each", "mean"])
def test_queries_and_keys_may_be_of_two_number_formats_under_autocast(heads):
    torch.manual_seed(1)
    layer, x, taps = OfOnesOwn(), rand(3, LENGTH, WIDTH), AttentionTaps()
    layer.query.register_forward_hook(lambda module, inputs, output: output.float() * 2.0)
    taps.attach({"layer": layer})
    taps.open()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        ((attention,),) = taps.take()["layer"]
        loss = AttentionTransfer(student="net", heads=heads).compare(attention, attention.detached(), None)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert layer.query.weight.grad.isfinite().all()


class Net(nn.Module):
    def __init__(self, seed, make=LAYERS["own"], recomputes=False):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(make() for _ in range(2))
        self.head, self.recomputes = nn.Linear(WIDTH, 3), recomputes

    def forward(self, x, padding=None):
        for layer in self.layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if self.recomputes else layer(x))
        return self.head(x.mean(1))


class Student(LightningModule):
    def __init__(self, **how):
        super().__init__()
        self.net = Net(0, **how)

    def training_step(self, batch, batch_idx):
        x, y, padding = batch
        return F.cross_entropy(self.net(x, padding=padding), y)

    def configure_optimizers(self):
        return torch.optim.SGD(
            self.net.parameters(), 0.1
        )  # a bias of keys has no gradient but rounding, which Adam magnifies


class HandWritten(Student):
    """The loss from attention that is written out, in the mean over heads and valid queries, summed over layers."""

    valid = False

    def training_step(self, batch, batch_idx):
        x, y, padding = batch
        mine, theirs, total = x, x, 0.0
        for student, teacher in zip(self.net.layers, Net(9).layers, strict=True):
            probabilities = []
            for layer, tokens in ((student, mine), (teacher, theirs)):
                query, key = (part(tokens).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (layer.query, layer.key))
                probabilities.append((query @ key.transpose(-2, -1) / 2).softmax(-1))
            own, other = probabilities[0], probabilities[1].detach()
            rows = (other * (other.log() - own.log())).sum(-1).mean(1)
            total = total + (rows[padding].mean() if self.valid else rows.mean())
            mine, theirs = mine + student(mine), (theirs + teacher(theirs)).detach()
        return 0.5 * F.cross_entropy(self.net.head(mine.mean(1)), y) + 2.0 * total


class HandWrittenWithPadding(HandWritten):
    valid = True


def data():
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (16,), generator=generator)
    padding = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (16, 1), generator=generator)
    return DataLoader(TensorDataset(rand(16, LENGTH, WIDTH, seed=2), y, padding), batch_size=4)


def fit(module, *callbacks):
    torch.manual_seed(7)
    quiet(*callbacks, max_epochs=2).fit(module, data())
    return module.net.state_dict()


def transferring(teacher=None, **settings):
    loss = AttentionTransfer(**({"student": "net.layers.*"} | settings))
    return DistillationTeacher(teacher=teacher or Net(9), losses={"attention": loss}, weight=2.0, hard_weight=0.5)


@pytest.mark.parametrize(("settings", "reference"), [({}, HandWritten), ({"mask": "padding"}, HandWrittenWithPadding)])
def test_weights_equal_those_with_the_loss_written_into_the_module(settings, reference):
    found, expected = fit(Student(), transferring(**settings)), fit(reference())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=3e-6)


def test_recomputed_layers_are_seen_once():
    plain, recomputed = fit(Student(), transferring()), fit(Student(recomputes=True), transferring())
    assert all(torch.equal(tensor, recomputed[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("kind", ["torch", "torch, weights", "own"])
def test_simulated_attention_is_seen_in_either_order_of_the_callbacks(kind):
    ends = []
    for is_first in (True, False):
        callbacks = [QATFakeQuant(), transferring(Net(9, LAYERS[kind]))]
        ends.append(fit(Student(make=LAYERS[kind]), *(callbacks if is_first else reversed(callbacks))))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    for alone in (transferring(Net(9, LAYERS[kind])), QATFakeQuant()):
        other = fit(Student(make=LAYERS[kind]), alone)
        assert not all(torch.equal(tensor, other[name]) for name, tensor in ends[0].items())


def test_heads_that_differ_are_compared_by_their_mean_and_refused_one_by_one():
    class OneHead(OfOnesOwn):
        def forward(self, x):
            heads = [part(x).unsqueeze(1) for part in (self.query, self.key, self.value)]
            return self.out(attend(*heads).squeeze(1))

    teacher = Net(9, make=OneHead)
    with pytest.raises(ValueError, match=r"2 heads.*the teacher's 4, 1, 5 and 5.*their mean"):
        fit(Student(), transferring(teacher))
    fit(Student(), transferring(Net(9, make=OneHead), heads="mean"))


@pytest.mark.parametrize(
    ("place", "says"),
    [("net.head", "'net.head' computes no attention"), ("net.wrapped", "'net.wrapped' computes 2 attentions")],
)
def test_none_or_several_attentions_are_refused_by_name(place, says):
    student, teacher = Student(), Net(9)
    for net in (student.net, teacher):
        net.wrapped = nn.Sequential(*net.layers)
        net.forward = lambda x, padding=None, net=net: net.head(net.wrapped(x).mean(1))
    with pytest.raises(TapError, match=says):
        fit(student, transferring(teacher, student=place))


def test_an_attention_is_no_tensor():
    with pytest.raises(ValueError, match="take AttentionTransfer"):
        fit(Student(), DistillationTeacher(teacher=Net(9), losses=Hint(student="net.layers.*:attention")))
    with pytest.raises(ValueError, match="without a part behind a colon"):
        AttentionTransfer(student="net.layers.*:attention")
