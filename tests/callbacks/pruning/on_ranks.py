"""Run by ``test_on_ranks``: fits under DDP on so many ranks as its argument says.

They go back, rewind and regrow, with and without a shrink; each rank prints ``LABEL equal SPARSITY``.
"""

import importlib.util
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed

from support import same


def load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


until, rewinder, regrower = (load(f"test_{name}") for name in ("metric_guard", "rewinder", "regrower"))


class Scored(until.Scored):
    """Each rank has data of its own, and says another score."""

    def training_step(self, batch, batch_idx):
        seed = 1000 * self.global_rank + 100 * self.current_epoch + batch_idx
        x = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
        return F.cross_entropy(self.net(x), x.flatten(1)[:, :3].argmax(1))

    def validation_step(self, batch, batch_idx):
        is_good = self.gone() <= self.cliff + 1e-6
        # The mean falls by 0.15, more than is allowed; those of the odd ranks alone do not.
        self.log("val/score", 0.9 if is_good or self.global_rank % 2 else 0.6)


class Net(regrower.Net):
    def loss(self, batch_idx):
        seed = 1000 * self.global_rank + 100 * self.current_epoch + batch_idx
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed))
        return F.cross_entropy(self.net(x), x[:, :3].argmax(1))


def report(label, module, trainer, pruning):
    own = pruning.state_dict()
    mine = [dict(module.state_dict()), trainer.optimizers[0].state_dict()["state"], own["masks"], own["cut"]]
    everyone = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    for one in everyone:  # statistics of batch norms are of each rank's own data
        one[0] = {name: value for name, value in one[0].items() if "running" not in name}
    verdict = "equal" if all(same(everyone[0], one) for one in everyone) else "differs"
    sys.stdout.write(f"{label} {verdict} {pruning.target_sparsity:g}\n")
    sys.stdout.flush()


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ddp = {"strategy": "ddp", "devices": int(sys.argv[1])}
    for label, structure in until.STRUCTURES.items():
        module, pruning = Scored(), until.scheduler(structure)
        module.by_channel = structure is not None
        report(f"until-{label}", module, until.fit(module, pruning, **ddp), pruning)
    module, pruning = Scored(), until.scheduler(until.Channel(), values=(0.8,), length=6, tolerance=0.1)
    module.by_channel = True
    report("until-search", module, until.fit(module, pruning, max_epochs=7, **ddp), pruning)
    for label, kind in regrower.KINDS.items():
        module, pruning = Net(), regrower.scheduler(kind)
        report(f"regrow-{label}", module, regrower.fit(module, pruning, **ddp), pruning)
    module, pruning = rewinder.Net(), rewinder.scheduler(rewinder.Rewind(step=2), rewinder.Channel())
    epochs = 9 * ddp["devices"] // 2  # an epoch has as many steps fewer as there are ranks more
    report("rewind", module, rewinder.fit(module, pruning, max_epochs=epochs, **ddp), pruning)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
