"""Run by ``test_batch_mixer``: under DDP each rank draws its own, and ends as mixup that is written into the step."""

import warnings

import torch
from torch import distributed
from torch.utils.data import DataLoader

from mixing_by_hand import Module, Written, data, drawn, mixer
from support import quiet, same


def fit(module, *callbacks, finds=False):
    torch.manual_seed(5)
    loader = DataLoader(data().dataset, batch_size=4)
    strategy = "ddp_find_unused_parameters_true" if finds else "ddp"
    quiet(*callbacks, max_epochs=2, strategy=strategy, devices=2, accumulate_grad_batches=2).fit(module, loader)
    everyone = [None, None]
    distributed.all_gather_object(everyone, dict(module.named_parameters()))
    assert same(*everyone)
    return module


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for finds in (False, True):
        added, written = fit(Module(), mixer(), finds=finds), fit(Written(), finds=finds)
        assert same(dict(added.state_dict()), dict(written.state_dict()))
        assert added.logged == written.logged
        assert added.net.runs == written.net.runs == 6
    assert drawn(3, 0, 8, 0.4)[:2] != drawn(3, 1, 8, 0.4)[:2]
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
