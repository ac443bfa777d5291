import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_optim.surgery.example import ExampleInputs, FirstCall
from support import same

Pair = namedtuple("Pair", "left right")


@dataclass
class Batch:
    x: torch.Tensor


class Counted(nn.Module):
    """Reads an attribute of its argument, if it has one, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.calls = nn.Linear(3, 2), nn.Dropout(), 0

    def forward(self, batch):
        self.calls += 1
        return self.drop(self.layer(batch if isinstance(batch, torch.Tensor) else batch[0]))


class Sequences(nn.Module):
    """Takes lengths that fall, none longer than the sequence, and a mask that hides some steps but not all."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(10, 4), nn.LSTM(4, 4, batch_first=True)

    def forward(self, tokens, lengths, hidden=None):
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True)
        steps = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=tokens.shape[1])[0]
        scores = steps.sum(-1) if hidden is None else steps.sum(-1).masked_fill(hidden, -torch.inf)
        return scores.softmax(1)


TOKENS = torch.arange(18).view(3, 6) % 10
LENGTHS = torch.tensor([6, 5, 2])
HIDDEN = torch.arange(6).expand(3, 6) >= LENGTHS[:, None]


def observed(network, *args, **kwargs):
    example = ExampleInputs()
    example.watch(network)
    network(*args, **kwargs)
    example.release()
    return example


def resumed(example, network, tmp_path):
    torch.save(example.state_dict(), tmp_path / "example.pt")
    other = ExampleInputs()
    other.load_state_dict(torch.load(tmp_path / "example.pt", weights_only=True))
    other.watch(network)
    other.release()
    return other


CALLS = {
    "a tensor": (Counted, (torch.randn(8, 3),), {}),
    "a tuple": (Counted, ((torch.randn(8, 3), None, "text"),), {}),
    "lengths": (Sequences, (TOKENS, LENGTHS), {"hidden": None}),
    "a list of lengths": (Sequences, (TOKENS, LENGTHS.tolist()), {}),
    "a mask": (Sequences, (TOKENS, LENGTHS), {"hidden": HIDDEN}),
}


@pytest.mark.parametrize(("make", "args", "kwargs"), CALLS.values(), ids=CALLS.keys())
def test_inputs_are_made_that_the_network_takes_and_a_resumed_run_makes_the_same(make, args, kwargs, tmp_path):
    network = make()
    example = observed(network, *args, **kwargs)
    other = resumed(example, make(), tmp_path)
    assert example
    assert other
    assert same(example.args, other.args)
    assert same(example.kwargs, other.kwargs)
    out = network.eval()(*example.args, **example.kwargs)
    assert len(out) == 2
    assert out.isfinite().all()
    seen = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    assert not any(torch.equal(one[:2], made) for one in seen for made in example.args if torch.is_tensor(made))


def test_looking_leaves_network_modes_and_random_numbers_alone():
    network, plain = Counted(), Counted()
    plain.load_state_dict(network.state_dict())
    x = torch.randn(4, 3)
    torch.manual_seed(1)
    expected = plain(x)
    example = ExampleInputs()
    example.watch(network)
    torch.manual_seed(1)
    assert torch.equal(network(x), expected)
    assert network.calls == 1
    assert network.training
    assert "forward" in vars(network)
    example.release()
    assert "forward" not in vars(network)


@pytest.mark.parametrize("argument", [Batch(torch.ones(4, 3)), Pair(torch.ones(4, 3), 1), ["one", "two"]])
def test_objects_of_the_users_stay_in_memory_and_are_looked_at_again_with_a_warning(argument, tmp_path):
    class Reads(nn.Module):
        def forward(self, x, given):
            return x + (given.x.mean() if isinstance(given, Batch) else 0)

    network, x = Reads(), torch.randn(2, 3)
    example = observed(network, x, argument)
    assert example
    assert torch.equal(example.args[0], x)
    state = example.state_dict()
    assert state["inputs"] is None
    with pytest.warns(UserWarning, match="what is due in the first batch is done after that batch"):
        other = resumed(example, network, tmp_path)
    assert not other
    other.watch(network)
    network(x, argument)
    assert other
    assert other.state_dict() == state


def test_a_network_that_takes_nothing_made_up_keeps_what_it_was_called_with():
    class Picky(nn.Module):
        def forward(self, x):
            if not torch.equal(x[0], torch.tensor([0.25, 0.75])):
                raise ValueError("rows must be known")
            return x

    x = torch.tensor([0.25, 0.75]).repeat(4, 1)
    example = observed(Picky(), x)
    assert torch.equal(example.args[0], x[:2])
    assert "rows must be known" in example.state_dict()["obstacle"]


def test_a_network_that_takes_no_two_rows_gets_all_of_them():
    class Views(nn.Module):
        def forward(self, x, group):
            return x.view(len(group), -1) + group[:, None]

    example = observed(Views(), torch.randn(8, 3), torch.arange(4))
    assert example.args[0].shape == (8, 3)
    assert example.args[1].shape == (4,)


def test_a_range_for_probabilities_is_found():
    class Loss(nn.Module):
        def forward(self, x):
            return F.binary_cross_entropy(x, x)

    example = observed(Loss(), torch.rand(4, 3))
    assert example.state_dict()["filling"]["floats"] == "unit"


def test_what_a_validation_shows_serves_training():
    network = Counted()
    example = ExampleInputs()
    example.watch(network)
    with torch.inference_mode():
        network(torch.randn(4, 3))
    assert not example.args[0].is_inference()


def test_before_the_first_call_nothing_is_known_and_nothing_is_said(tmp_path):
    example = ExampleInputs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = resumed(example, Counted(), tmp_path)
    assert not other


def test_the_first_call_itself_is_kept_where_data_may_be():
    network, x = Counted(), torch.randn(4, 3)
    first = FirstCall()
    first.watch(network)
    network(x)
    network(x + 1)
    first.release()
    assert torch.equal(first.args[0], x[:2])


def test_a_network_inside_a_whole_compiled_graph_is_tried_afterwards():
    torch._dynamo.reset()
    network, x = Counted(), torch.randn(4, 3)
    example = ExampleInputs()
    example.watch(network)
    step = torch.compile(lambda batch: network(batch).sum(), backend="eager", fullgraph=True)
    step(x)
    example.release()
    assert example
    assert example.args[0].shape == (2, 3)
    assert not torch.equal(example.args[0], x[:2])
    assert example.state_dict()["inputs"] is not None
