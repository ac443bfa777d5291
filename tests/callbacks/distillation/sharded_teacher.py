"""Run by ``test_teachers``: two ranks learn from a teacher that is sharded over them; prints ``rank RANK equal``."""

import importlib.util
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_optim.distillation import NetworkTeacher
from support import same

spec = importlib.util.spec_from_file_location("cases", Path(__file__).with_name("test_teachers.py"))
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded(NetworkTeacher):
    """Shards the network once the ranks know each other."""

    def load(self, student):
        network, mesh = cases.net(5, width=16), init_device_mesh("cpu", (2,))
        for layer in (network[0], network[2], network):
            fully_shard(layer, mesh=mesh)
        return network


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ends = []
    for teacher in (cases.net(5, width=16), Sharded()):
        student = cases.Student()
        hint = cases.Hint(student="net.0", teacher="0")
        callback = cases.DistillationTeacher(teacher=teacher, losses={"hint": hint, "mse": cases.MeanSquaredError()})
        cases.fit(student, callback, strategy="ddp", devices=2)
        ends.append(dict(student.state_dict()))
    sys.stdout.write(f"rank {student.global_rank} {'equal' if same(*ends) else 'differs'}\n")
    sys.stdout.flush()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
