"""Run by ``test_student_teachers``: a teacher that is an average of the student, under DDP; prints ``ema equal``."""

import importlib.util
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed

from lightning_optim.distillation import EMA
from support import same

spec = importlib.util.spec_from_file_location("cases", Path(__file__).with_name("test_student_teachers.py"))
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)


class Student(cases.Student):
    """Rank 1 sees other inputs than rank 0, so its batch norms have other statistics."""

    def training_step(self, batch, batch_idx):
        x, y = cases.batch_of(100 * self.global_rank + batch_idx)
        return cases.F.cross_entropy(self(x), y)


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    student, callback = Student(), cases.distil(EMA(decay=0.5))
    cases.fit(student, callback, strategy="ddp", devices=int(sys.argv[1]))
    everyone = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, dict(callback.teacher_module.state_dict()))
    verdict = "equal" if same(*everyone) else "differs"
    verdict = "untrained" if same(everyone[0], dict(Student().net.state_dict())) else verdict
    sys.stdout.write(f"ema {verdict}\n")
    sys.stdout.flush()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
