"""Capturing leaves the model alone."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from lightning_optim.errors import CaptureError
from lightning_optim.graph import capture_network, couple
from lightning_optim.pruning import shrink_channels


def test_the_model_keeps_its_mode_and_its_statistics():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    capture_network(net, (torch.randn(2, 3),))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_integer_attributes_come_along_and_metadata_of_torch_stay_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    captured = capture_network(net, (torch.randn(2, 3),))
    assert captured.attributes["0"] == {"in_features": 3, "out_features": 4}
    assert captured.shape_model is not None
    bare = torch.export.export(net.eval(), (torch.randn(2, 3),), strict=False)
    assert captured.program.graph_module.meta.keys() == bare.graph_module.meta.keys()


def test_what_cannot_be_captured_is_named():
    class Branch(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(CaptureError, match="cannot capture Branch"):
        capture_network(Branch(), (torch.randn(2),))


class Cache:
    """What a model keeps for its next call; nobody else looks into it."""

    def __init__(self, hidden):
        self.layers = [hidden]


@dataclass
class Answer:
    logits: torch.Tensor
    cache: Cache | None = None


class Request:
    """A container that its owner has registered, without names for its parts."""

    def __init__(self, x, mask=None):
        self.x, self.mask = x, mask


pytree.register_pytree_node(Request, lambda value: ([value.x, value.mask], None), lambda parts, _: Request(*parts))


class Server(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.encode, self.decode, self.answer = nn.Linear(3, 8), nn.Linear(8, 2), answer

    def forward(self, request):
        hidden = torch.relu(self.encode(request.x))
        return self.answer(self.decode(hidden), Cache(hidden))


@pytest.mark.parametrize("answer", [Answer, lambda logits, cache: (logits, cache)], ids=["dataclass", "tuple"])
def test_containers_of_ones_own_go_in_and_out_and_an_object_without_tensors_is_left_out(answer):
    net, request = Server(answer).eval(), Request(torch.randn(2, 3))
    coupling = couple(capture_network(net, (request,)))
    (group,) = coupling.groups
    assert group.size == 8
    keep = torch.tensor([0, 2, 5])
    assert shrink_channels(net, coupling, [(group, keep)], (request,)).refused == {}
    assert net.encode.out_features == net.decode.in_features == 3
    outputs = net(request)
    assert isinstance(outputs, type(answer(None, None)))
    assert isinstance(outputs.cache if answer is Answer else outputs[1], Cache)


def test_a_network_whose_outputs_nobody_sees_is_refused_with_their_kind():
    with pytest.raises(CaptureError, match="Cache"):
        capture_network(Server(lambda logits, cache: Cache(logits)), (Request(torch.randn(2, 3)),))


def test_a_transformer_of_torchs_under_a_causal_mask_is_captured_and_computes_the_same():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

        def forward(self, x):
            return self.layers(x, x, tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))

    net, x, detect = Translator().eval(), torch.randn(2, 5, 8), transformer._detect_is_causal_mask
    captured = capture_network(net, (x,))
    torch.testing.assert_close(captured.program.module()(x), net(x))
    assert 16 in {group.size for group in couple(captured).groups}
    assert transformer._detect_is_causal_mask is detect
