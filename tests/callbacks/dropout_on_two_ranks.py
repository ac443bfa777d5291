"""Run by ``test_dropout_scheduler``: under DDP each rank drops what it draws, as written into the network."""

import sys
import warnings
from pathlib import Path

import torch
from torch import distributed
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from test_dropout_scheduler import Module, data, scheduler, written

from support import quiet, same


def fit(module, *callbacks):
    torch.manual_seed(5)
    module.net.spare = torch.nn.Identity()  # DDP wants each parameter used
    loader = DataLoader(data().dataset, batch_size=4)
    quiet(*callbacks, max_epochs=2, strategy="ddp", devices=2, accumulate_grad_batches=2).fit(module, loader)
    everyone = [None, None]
    distributed.all_gather_object(everyone, dict(module.named_parameters()))
    assert same(*everyone)
    return dict(module.state_dict())


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for case in ("dropout", "stochastic_depth", "present_dropout"):
        assert same(fit(Module(), scheduler(case)), fit(written(case)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
