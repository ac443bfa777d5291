"""Run by ``test_penalty_regularizer``: under DDP a penalty is that of one that is written into the step."""

import sys
import warnings
from pathlib import Path

import torch
from torch import distributed
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from test_penalty_regularizer import AllByHand, Decayed, JacobianByHand, Module, all_at_once, data, decay, jacobian

from support import quiet, same


def fit(module, *callbacks, **settings):
    loader = DataLoader(data().dataset, batch_size=3)
    strategy = "ddp_find_unused_parameters_true" if settings.pop("finds", False) else "ddp"
    trainer = quiet(*callbacks, max_epochs=2, strategy=strategy, devices=2, **{"accumulate_grad_batches": 2} | settings)
    trainer.fit(module, loader)
    everyone = [None, None]
    distributed.all_gather_object(everyone, dict(module.state_dict()))
    names = [name for name, _ in module.named_parameters()]
    assert same(*({name: each[name] for name in names} for each in everyone))
    return module.state_dict()


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for finds in (False, True):
        assert same(fit(Module(), all_at_once(), finds=finds), fit(AllByHand(), finds=finds))
    assert same(fit(Module(), jacobian()), fit(JacobianByHand()))
    assert same(fit(Module(), decay()), fit(Decayed()))
    assert not same(fit(Module(), decay()), fit(Module()))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
