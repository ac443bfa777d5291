"""Allocations decide the same over two ranks that hold half of each pool as over one that holds all."""

import subprocess
import sys

import pytest
import torch

from lightning_optim.pruning import LAMP, ErdosRenyi, GlobalThreshold, Uniform

SPARSITIES = (0.0, 0.33, 0.7, 0.95)
ALLOCATIONS = {kind.__name__: kind() for kind in (ErdosRenyi, GlobalThreshold, LAMP, Uniform)}
RANK = f"""
import sys, torch
from torch import distributed
from lightning_optim.pruning import ErdosRenyi
from lightning_optim.pruning import GlobalThreshold
from lightning_optim.pruning import LAMP
from lightning_optim.pruning import Uniform
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2)
scores = torch.load(f"{{folder}}/scores.pt", weights_only=True)
mine = {{name: score.chunk(2)[rank] for name, score in scores.items()}}
found = {{
    f"{{kind.__name__}}-{{sparsity}}": kind()(mine, sparsity, distributed.group.WORLD)
    for kind in (ErdosRenyi, GlobalThreshold, LAMP, Uniform)
    for sparsity in {SPARSITIES}
}}
torch.save(found, f"{{folder}}/{{rank}}.pt")
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def scores():
    generator = torch.Generator().manual_seed(0)
    return {
        "even": torch.rand(8, 6, generator=generator),
        "uneven": 10.0 * torch.rand(5, 4, 2, generator=generator),
        "tied": torch.rand(12, 5, generator=generator).round(decimals=1),
        "gone": torch.rand(4, 4, generator=generator).masked_fill(torch.eye(4) > 0, -torch.inf),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, scores):
    folder = tmp_path_factory.mktemp("shards")
    torch.save(scores, folder / "scores.pt")
    running = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder)]) for rank in range(2)]
    assert [process.wait(timeout=100) for process in running] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("kind", ALLOCATIONS)
def test_two_halves_keep_what_the_whole_would(ranks, scores, kind, sparsity):
    expected = ALLOCATIONS[kind](scores, sparsity)
    for name, score in scores.items():
        together = torch.cat([found[f"{kind}-{sparsity}"][name] for found in ranks])
        # Which of several equal entries goes depends on who holds them; how many does not.
        assert torch.equal(score[together].sort().values, score[expected[name]].sort().values)
