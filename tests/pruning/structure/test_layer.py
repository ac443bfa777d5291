import pytest
import torch
from torch import nn

from lightning_optim.demo import VisionTransformer
from lightning_optim.errors import TargetError
from lightning_optim.graph import capture_network, couple
from lightning_optim.pruning import Layer, Uniform
from lightning_optim.pruning.structure.functional import allocate_jointly

BATCH = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return VisionTransformer(dim=16, depth=2, hidden=32, num_heads=4).eval()


@pytest.fixture(scope="module")
def coupling(network):
    return couple(capture_network(network, (BATCH,)))


def parts(network, *without):
    weights = {name: p.detach() for name, p in network.named_parameters() if p.dim() == 2 and "position" not in name}
    weights = {name: weight for name, weight in weights.items() if not name.startswith(without)}
    return weights, {name: weight.abs() for name, weight in weights.items()}


def test_a_branch_scores_the_mean_over_its_targeted_weights(network, coupling):
    pools = Layer().pools(*parts(network), coupling)
    expected = {}
    for index, block in enumerate(network.blocks):
        for name, layers in (
            ("attention.proj", (block.attention.qkv, block.attention.proj)),
            ("fc2", (block.fc1, block.fc2)),
        ):
            mean = torch.cat([layer.weight.detach().abs().flatten() for layer in layers]).mean()
            expected[f"blocks.{index}.{name}.weight"] = mean.unsqueeze(0)
    torch.testing.assert_close(pools, expected)
    assert list(pools) == list(expected)


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_the_lowest_branches_fall_and_their_blocks_hand_on_what_came_in(network, coupling, sparsity):
    pools = Layer().pools(*parts(network), coupling)
    keep = allocate_jointly(pools, Layer().competing(pools), lambda joint: Uniform()(joint, sparsity))
    masks = Layer().masks(keep, dict(network.named_parameters()), coupling)
    gone = torch.cat([*pools.values()]).argsort()[: round(4 * sparsity)].tolist()
    x = network.embed(BATCH).flatten(2).transpose(1, 2) + network.position
    for index, block in enumerate(network.blocks):
        x = x if 2 * index in gone else x + block.attention(block.norm1(x))
        x = x if 2 * index + 1 in gone else x + block.fc2(nn.functional.gelu(block.fc1(block.norm2(x))))
    expected = network.head(network.norm(x).mean(1))
    masked = {name: p.detach() * masks.get(name, torch.tensor(1.0)) for name, p in network.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(network, masked, (BATCH,)), expected)


def test_branches_without_a_target_are_left_alone_and_do_not_count(network, coupling):
    weights, scores = parts(network, "blocks.0.attention", "blocks.1.fc")
    pools = Layer().pools(weights, scores, coupling)
    names = ("blocks.0.fc2.weight", "blocks.1.attention.proj.weight")
    assert tuple(pools) == names
    assert Layer().competing(pools) == (names,)
    masks = Layer().masks({name: torch.tensor([False]) for name in names}, dict(network.named_parameters()), coupling)
    assert {mask.split(".")[2] for mask in masks if mask.startswith("blocks.0")} == {"fc1", "fc2", "norm2"}
    assert {mask.split(".")[2] for mask in masks if mask.startswith("blocks.1")} == {"attention", "norm1"}


def test_a_network_without_targeted_branches_is_refused(network, coupling):
    weights = {"head.weight": network.head.weight}
    with pytest.raises(TargetError, match="none of the 1 targeted layers lies in one of the 4 residual branches"):
        Layer().pools(weights, weights, coupling)
