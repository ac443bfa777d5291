"""Run by ``test_sharpness_aware``: under DDP each rank moves its weights on its own, and ends equal to SAM by hand."""

import sys
import warnings
from pathlib import Path

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parent))
from test_sharpness_aware import Manual, Module, Net, fit, written

from lightning_optim import (
    DistillationTeacher,
    PenaltyRegularizer,
    PruningScheduler,
    QATFakeQuant,
    SharpnessAware,
    Window,
)
from lightning_optim.distillation import Hint, SoftTarget
from lightning_optim.pruning import Wanda
from lightning_optim.regularization import L1
from lightning_optim.schedule import Constant
from support import same


def ends(module, *callbacks, strategy, **settings):
    found = fit(module, *callbacks, strategy=strategy, devices=2, **settings)
    everyone, weights = [None, None], {name: value.detach() for name, value in module.named_parameters()}
    distributed.all_gather_object(everyone, weights)
    assert same(*everyone)
    # Under manual optimization Lightning's DDP does not broadcast the statistics of rank 0.
    return found if distributed.get_rank() == 0 else weights


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for strategy in ("ddp", "ddp_find_unused_parameters_true"):
        expected = ends(written(), strategy=strategy)
        for kind in (Module, Manual):
            assert same(ends(kind(), SharpnessAware(), strategy=strategy), expected), (strategy, kind)
        assert not same(ends(Module(), strategy=strategy), expected)
    together = {"strategy": "ddp", "accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    module, by_hand = Module(), written(accumulation=2, clip=0.05)
    for each in (module, by_hand):
        each.optimizer = torch.optim.SGD  # of what is about 0, Adam would take the sign
    found, expected = ends(module, SharpnessAware(), **together), ends(by_hand, strategy="ddp")
    for name, value in found.items():  # ranks meet once in a step, and by hand once in a batch: sums in another order
        torch.testing.assert_close(value, expected[name], rtol=0.0, atol=1e-7)
    hint = Hint(student="net.stem", teacher="stem", projection="always")
    teacher = DistillationTeacher(teacher=Net(), losses={"soft": SoftTarget(), "hint": hint})
    pruning = PruningScheduler(criterion=Wanda(), schedule=Constant(value=0.5), window=Window(begin=1, unit="step"))
    others = [teacher, pruning, QATFakeQuant(), PenaltyRegularizer(penalties=L1(), strength=0.01)]
    found, everyone = ends(Module(), *others, SharpnessAware(), strategy="ddp"), [None, None]
    assert int((found["net.stem.weight"] == 0).sum()) == 27
    states = [teacher.state_dict()["learned"], others[2].state_dict()["ranges"]]
    distributed.all_gather_object(everyone, states)
    assert same(*everyone)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
