"""Run by ``test_every_loss``: each loss on two ranks, by the callback and written into the module.

Usage: ``python every_loss_on_ranks.py SETTING,SETTING... LABEL...``; prints ``SETTING | LABEL | verdict`` on each rank.
"""

import sys
import warnings

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed

from distilled_by_hand import ByHand, Student, distilling, fit
from losses_by_hand import CASES
from support import same

SETTINGS = {
    "ddp": {},
    "ddp_find_unused_parameters_true": {"has_spare": True},
    "fsdp2": {"is_sharded": True},
}


def fit_on_ranks(setting, module, *callbacks):
    is_sharded = setting == "fsdp2"
    strategy = ModelParallelStrategy(tensor_parallel_size=1, data_parallel_size=2) if is_sharded else setting
    fit(module, *callbacks, strategy=strategy, devices=2)
    parameters = dict(module.net.named_parameters())
    return {name: each.full_tensor() if is_sharded else each.detach() for name, each in parameters.items()}


def judge(setting, losses, written):
    """``equal``, or by how much weights and what learns differ from those by hand, or one rank from the other."""
    kind = SETTINGS[setting]
    callback = distilling(losses)
    weights = fit_on_ranks(setting, Student(**kind), callback)
    learned = [values for each in callback.state_dict().get("learned", {}).values() for values in each["values"]]
    by_hand = ByHand(written, is_apart=setting == "fsdp2", **kind)
    expected = [*fit_on_ranks(setting, by_hand).values(), *(each.detach() for each in by_hand.learned)]
    found, everyone = [*weights.values(), *learned], [None, None]
    distributed.all_gather_object(everyone, found)
    if not same(*everyone):
        return "ranks differ"
    if same(found, expected):
        return "equal"
    differences = [float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)]
    return f"differs by {max(differences):.1e}: {dict(zip(weights, differences, strict=False))}"


def main():
    settings, *labels = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for setting in settings.split(","):
        for label in labels:
            sys.stdout.write(f"{setting} | {label} | {judge(setting, *CASES[label])}\n")  # in one piece, of both ranks
            sys.stdout.flush()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
