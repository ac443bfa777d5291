"""Run by ``test_architecture_step``: under DDP ranks learn the same architecture parameters, or the fit ends.

Usage: ``python architecture_on_two_ranks.py COUNT``: how many samplers.
"""

import sys
import warnings
from pathlib import Path

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parent))
from test_architecture_step import STEPS, Drift, User, fit, learned, loader, searcher

from lightning_optim.errors import RankMismatchError
from lightning_optim.nas import DARTS, GDAS, FairNAS, ProxylessNAS, Sandwich
from support import quiet, same


def say(text):
    sys.stdout.write(f"{text}\n")  # in one piece: both ranks share the stream
    sys.stdout.flush()


def ends(sampler):
    module, callback, made = fit(sampler, None, strategy="ddp", devices=2)
    own = callback.state_dict()
    if isinstance(sampler, (DARTS, GDAS, ProxylessNAS)):
        assert made.global_step == 3  # half of twelve batches, shared by two
        assert float(learned(callback)[0].abs().max()) > 0.01
    everyone = [None, None]
    distributed.all_gather_object(everyone, [own, dict(module.named_parameters())])
    return made.global_rank, "equal" if same(*everyone) else "unlike"


def drift():
    callback = searcher(GDAS(steps=STEPS))
    made = quiet(callback, Drift(), max_epochs=1, strategy="ddp", devices=2)
    try:
        made.fit(User(), loader())
    except RankMismatchError:
        return f"drift rank {made.global_rank} caught before step {made.global_step}"
    return "drift unnoticed"


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    samplers = [GDAS(steps=STEPS), FairNAS(), DARTS(steps=STEPS), ProxylessNAS(steps=STEPS), Sandwich()]
    samplers = samplers[: int(sys.argv[1])]
    for sampler in samplers:
        rank, found = ends(sampler)
        say(f"{type(sampler).__name__} rank {rank} {found}")
    say(drift())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
