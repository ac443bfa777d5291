import pytest
import torch
from torch import nn

from lightning_optim.errors import ArtefactError
from lightning_optim.recipe.artefact import (
    check_checkpoint,
    load_cut,
    load_inputs,
    load_weights,
    save_cut,
    save_inputs,
    save_weights,
    weights_hash,
)
from lightning_optim.surgery import apply_cut


def network(width=6, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


def test_weights_come_back_bit_for_bit(tmp_path):
    source, other = network(seed=0), network(seed=1)
    digest = save_weights(tmp_path / "weights.safetensors", source)
    load_weights(tmp_path / "weights.safetensors", other)
    for name, tensor in source.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert weights_hash(other.state_dict()) == digest


def test_the_hash_sees_values_names_types_and_shapes_but_neither_order_nor_strides():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}
    same = {"b": torch.ones(1), "a": state["a"].t().contiguous().t()}
    assert weights_hash(same) == weights_hash(state)
    changed = [
        {**state, "b": torch.full((1,), 1 + 2e-7)},
        {"a": state["a"], "c": state["b"]},
        {**state, "b": torch.ones(1, dtype=torch.float64)},
        {**state, "a": state["a"].view(3, 2)},
    ]
    assert len({weights_hash(each) for each in [state, *changed]}) == 5


def test_a_cut_and_its_weights_rebuild_the_smaller_model(tmp_path):
    kept = torch.tensor([0, 2, 5])
    whole = network()
    small = network()
    names = {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0, "1.running_mean": 0, "1.running_var": 0}
    cut = {name: [[dim, kept, 6]] for name, dim in {**names, "2.weight": 1}.items()}
    apply_cut(small, {name: [(dim, index) for dim, index, _ in cuts] for name, cuts in cut.items()})
    save_cut(tmp_path / "cut.pt", cut)
    save_weights(tmp_path / "weights.safetensors", small)

    apply_cut(whole, load_cut(tmp_path / "cut.pt"))
    load_weights(tmp_path / "weights.safetensors", whole)
    images = torch.rand(2, 1, 5, 5)
    assert whole[0].out_channels == 3
    assert torch.equal(whole.eval()(images), small.eval()(images))


def test_inputs_keep_their_order(tmp_path):
    inputs = [torch.full((1,), float(number)) for number in range(12)]
    save_inputs(tmp_path / "inputs.safetensors", inputs)
    assert torch.equal(torch.stack(load_inputs(tmp_path / "inputs.safetensors")), torch.stack(inputs))


def test_weights_of_another_model_are_refused(tmp_path):
    save_weights(tmp_path / "weights.safetensors", network(width=4))
    with pytest.raises(ArtefactError, match="of another model"):
        load_weights(tmp_path / "weights.safetensors", network(width=6))


READERS = {
    "weights.safetensors": lambda path: load_weights(path, network()),
    "inputs.safetensors": load_inputs,
    "cut.pt": load_cut,
    "last.ckpt": check_checkpoint,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [None, b"", b"not at all", b"PK\x03\x04 and then nothing"])
def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=name):
        READERS[name](tmp_path / name)


def test_a_checkpoint_holds_a_state_dict(tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "last.ckpt")
    with pytest.raises(ArtefactError, match="no checkpoint of a Trainer"):
        check_checkpoint(tmp_path / "last.ckpt")
