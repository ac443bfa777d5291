import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lightning_optim.surgery.masked_norm import MaskedNorm, drop_masked_norms, mask_norms, whole_norms

KEPT = torch.tensor([0, 2, 3])
HALF = MaskedNorm([(1, KEPT, 4)], [(1, KEPT, 4)], {"weight": [(0, KEPT)], "bias": [(0, KEPT)]})


def net():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    for parameter in made.parameters():
        nn.init.uniform_(parameter)
    return made


BATCH = torch.tensor([[0.1, 0.7, -0.3], [1.0, 0.2, 0.4]])


def by_hand(made, inputs):
    """The norm over the kept channels alone, and nothing where the others are."""
    hidden = made[0](inputs)[:, KEPT]
    normed = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    full = torch.zeros(len(inputs), 4)
    full[:, KEPT] = normed * made[1].weight[KEPT] + made[1].bias[KEPT]
    return made[2](full)


def test_layer_computes_over_what_is_left_and_gradients_are_those():
    made, reference = net(), net()
    mask_norms(made, {"1": HALF})
    found, wanted = made(BATCH), by_hand(reference, BATCH)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for one, other in zip(made.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_deep_copy_computes_alike_with_its_own_weights():
    made = net()
    mask_norms(made, {"1": HALF})
    copied = copy.deepcopy(made)
    with torch.no_grad():
        made[1].weight.zero_()
    torch.testing.assert_close(copied(BATCH), by_hand(net(), BATCH))
    mask_norms(copied, {})
    assert torch.equal(copied(BATCH), net()(BATCH))


def test_pickle_names_torch_alone_and_is_of_the_layer_as_it_is_written():
    made = net()
    mask_norms(made, {"1": HALF})
    saved = pickle.dumps(made)
    assert b"lightning_optim" not in saved
    assert torch.equal(pickle.loads(saved)(BATCH), net()(BATCH))  # noqa: S301  # made here
    torch.save(made, buffer := io.BytesIO())
    assert b"lightning_optim" not in buffer.getvalue()


def test_each_owner_takes_back_its_own():
    made = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    mask_norms(made, {"0": HALF}, "one")
    mask_norms(made, {"1": HALF}, "other")
    mask_norms(made, {}, "one")
    assert ["forward" in vars(layer) for layer in made] == [False, True]
    with whole_norms(made):
        assert not any("forward" in vars(layer) for layer in made)
    assert "forward" in vars(made[1])
    drop_masked_norms(made)
    assert not any("forward" in vars(layer) for layer in made)


@pytest.mark.parametrize("padding", [False, True])
def test_encoder_evaluates_as_it_trains_and_gets_its_fast_path_back(padding):
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    made = nn.TransformerEncoder(layer, 2).eval()
    kept = torch.tensor([0, 1])
    norm = MaskedNorm([(2, kept, 4)], [(2, kept, 4)], {"weight": [(0, kept)], "bias": [(0, kept)]})
    mask_norms(made, {"layers.0.norm1": norm, "layers.1.norm2": norm})
    inputs = torch.rand(2, 3, 4)
    mask = {"src_key_padding_mask": torch.tensor([[False] * 3, [False, False, True]])} if padding else {}
    with torch.no_grad():
        evaluated = made(inputs, **mask)
    torch.testing.assert_close(evaluated, made.train()(inputs, **mask), rtol=1e-4, atol=1e-5)
    mask_norms(made, {})
    assert made.use_nested_tensor
    assert [part.activation_relu_or_gelu for part in made.layers] == [1, 1]


def test_state_is_plain_and_gives_the_norm_back():
    again = MaskedNorm.from_state_dict(HALF.state_dict())
    made, other = net(), net()
    mask_norms(made, {"1": HALF})
    mask_norms(other, {"1": again})
    assert torch.equal(made(BATCH), other(BATCH))
