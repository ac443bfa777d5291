import json

import pytest
import torch
from torch import nn

from lightning_optim.demo import Classifier, ResidualNet
from lightning_optim.pruning import BySensitivity
from lightning_optim.recipe.artefact import save_cut, save_weights
from lightning_optim.surgery import apply_cut

TINY = (
    "model.network.widths=[4,8]",
    "trainer.limit_val_batches=1",
    "sparsities=[0.5,0.9]",
    "bits=[2,8]",
    "hydra.run.dir=run",
)


def module():
    torch.manual_seed(0)
    return Classifier(ResidualNet(widths=(4, 8)))


@pytest.fixture
def weights(tmp_path):
    torch.save({"state_dict": module().state_dict()}, tmp_path / "model.ckpt")
    return "weights=model.ckpt"


def test_it_prints_and_writes_what_is_coupled_and_what_it_would_cost(call, weights, tmp_path):
    answer = call("analyze", weights, *TINY)
    assert answer.code == 0, answer.err
    content = json.loads((tmp_path / "run" / "analyze.json").read_text())
    sizes = {group["name"]: group["channels"] for group in content["groups"]}
    assert sizes == {
        "stem.weight": 4,
        "layers.0.conv1.weight": 4,
        "layers.1.conv1.weight": 8,
        "layers.1.conv2.weight": 8,
    }
    assert content["frozen"] == ["head.weight"]
    inner = next(group for group in content["groups"] if group["name"] == "layers.0.conv1.weight")
    assert inner["parameters"] == 4 * 4 * 9 * 2 + 2 * 4  # both convolutions, scale and shift between them
    assert inner["macs"] == 2 * 4 * 4 * 9 * 16 * 16
    assert ["layers.0.conv2.weight", 1] in inner["members"]
    table = content["sensitivity"]
    assert len(table["layers"]) == 7
    assert [curve["pool"] for curve in table["groups"]] == list(sizes)
    assert {len(curve["values"]) for curve in table["layers"] + table["groups"]} == {2}
    bits = content["bits"]
    assert bits["bits"] == [2, 8]
    assert [layer["layer"] for layer in bits["layers"]] == [
        curve["pool"].removesuffix(".weight") for curve in table["layers"]
    ]
    assert all(layer["values"][1] == bits["base"] for layer in bits["layers"])  # all else has 8 bits too
    page = (tmp_path / "run" / "analyze.html").read_text()
    assert page.count("<svg") == 3
    for text in ("layers.0.conv1", "val/accuracy"):
        assert text in answer.out
        assert text in page


def test_the_table_serves_the_allocation_by_sensitivity(call, weights, tmp_path):
    assert call("analyze", weights, *TINY).code == 0
    allocation = BySensitivity(table=str(tmp_path / "run" / "analyze.json"))
    scores = {"stem.weight": torch.rand(4), "layers.0.conv1.weight": torch.rand(4)}
    assert sum(int((~mask).sum()) for mask in allocation(scores, 0.5).values()) == 4


def test_a_stage_is_read_with_every_cut_before_it(call, tmp_path):
    small, keep = module(), torch.tensor([0, 2])
    cut = {"net.layers.0.conv1.weight": [(0, keep, 4)], "net.layers.0.conv2.weight": [(1, keep, 4)]}
    cut |= {f"net.layers.0.norm1.{name}": [(0, keep, 4)] for name in ("weight", "bias", "running_mean", "running_var")}
    for name in ("0-base", "1-prune", "2-distil"):
        (tmp_path / "stages" / name).mkdir(parents=True)
    apply_cut(small, {name: [(dim, kept) for dim, kept, _ in cuts] for name, cuts in cut.items()})
    save_cut(tmp_path / "stages" / "1-prune" / "cut.pt", cut)
    save_weights(tmp_path / "stages" / "2-distil" / "weights.safetensors", small)
    answer = call("analyze", "weights=stages/2-distil", *TINY)
    assert answer.code == 0, answer.err
    content = json.loads((tmp_path / "run" / "analyze.json").read_text())
    assert {group["name"]: group["channels"] for group in content["groups"]}["layers.0.conv1.weight"] == 2


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ([], ["weights= must name trained weights"]),
        (["weights=nowhere.ckpt"], ["nowhere.ckpt", "no weights"]),
        (["weights=."], ["no finished stage", "stages/0-base"]),
        (["weights=model.ckpt", "metric=val/acc"], ["'val/acc'", "val/accuracy", "set metric to one of them"]),
        (["weights=model.ckpt", "sparsities=[0.5,0.2]"], ["ascend"]),
        (["weights=model.ckpt", "sparsities=0.5"], ["must be a list"]),
        (["weights=model.ckpt", "bits=4"], ["bits must be a list"]),
        (["weights=model.ckpt", "bits=[9]"], ["bits", "9"]),
        (["weights=model.ckpt", "bits=[4,4]"], ["different widths"]),
        (["weights=model.ckpt", "mode=best"], ["'max' or 'min'"]),
        (["weights=model.ckpt", "targets.include=[net.layer9.*]"], ["net.layer9.*"]),
        (["weights=model.ckpt", "trainer.devices=2"], ["one device"]),
        (["weights=model.ckpt", "network=backbone"], ["backbone"]),
        (["weights=model.ckpt", "model.network.widths=[4,6]"], ["another model"]),
        (["weights=other.ckpt"], ["no checkpoint of a Trainer"]),
        (["weights=code.ckpt"], ["cannot be read as plain weights"]),
        (["weights=model.ckpt", "lightning_optim/pruning/criterion@criterion=mean_activation"], ["needs to see data"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(call, weights, contents, tmp_path, words, fragments):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.ckpt")
    torch.save(module(), tmp_path / "code.ckpt")
    before = contents()
    given = [word for word in TINY if not any(word.split("=")[0] == own.split("=")[0] for own in words)]
    answer = call("analyze", *words, *given)
    assert answer.code == 1, answer
    (line,) = answer.err.strip().splitlines()
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line
    assert contents() == before


def test_an_analysis_is_not_written_over(call, weights, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "analyze.json").write_text("precious")
    answer = call("analyze", weights, *TINY)
    assert answer.code == 1
    assert "choose another folder" in answer.err
    assert (tmp_path / "run" / "analyze.json").read_text() == "precious"
