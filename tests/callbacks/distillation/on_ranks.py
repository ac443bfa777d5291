"""Run by ``test_on_ranks``: fits under DDP on so many ranks as its argument says, with every loss that looks inside.

Each rank has data of its own, and prints ``LABEL equal NUMBER``, with the number of tensors that learn in losses.
"""

import importlib.util
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed

from lightning_optim import DistillationTeacher
from lightning_optim.distillation import (
    CRD,
    PKT,
    RKD,
    VID,
    AttentionMap,
    ChannelWise,
    Hint,
    MiniLMRelations,
    SimilarityPreserving,
)
from support import same

spec = importlib.util.spec_from_file_location("losses_by_hand", Path(__file__).with_name("test_losses_by_hand.py"))
by_hand = importlib.util.module_from_spec(spec)
sys.modules["losses_by_hand"] = by_hand
spec.loader.exec_module(by_hand)

PLACE = {"student": "net.block", "teacher": "block"}
LOSSES = {
    "hint": Hint(**PLACE),
    "channel_wise": ChannelWise(**PLACE),
    "vid": VID(**PLACE),
    "crd": CRD(**PLACE),
    "attention_map": AttentionMap(**PLACE),
    "rkd": RKD(**PLACE),
    "pkt": PKT(**PLACE),
    "similarity_preserving": SimilarityPreserving(**PLACE),
    "minilm_relations": MiniLMRelations(**PLACE, relation_heads=1),
}


class Student(by_hand.Student):
    """Rank 1 sees other inputs than rank 0."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] + 0.5 * self.global_rank, batch[1]), batch_idx)


def report(label, student, callback):
    everyone = [None] * distributed.get_world_size()
    learned = callback.state_dict().get("learned", {})
    distributed.all_gather_object(everyone, [dict(student.state_dict()), learned])
    number = sum(len(state["values"]) for state in learned.values())
    began = [by_hand.Student().state_dict(), learned]
    verdict = "equal" if all(same(everyone[0], one) for one in everyone) else "differs"
    verdict = "untrained" if same(everyone[0], began) else verdict
    sys.stdout.write(f"{label} {verdict} {number}\n")
    sys.stdout.flush()


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for strategy in ("ddp", "ddp_find_unused_parameters_true"):
        student = Student()
        callback = DistillationTeacher(teacher=by_hand.Net(5, 100), losses=LOSSES, weight=0.1)
        by_hand.fit(student, callback, strategy=strategy, devices=int(sys.argv[1]))
        report(strategy, student, callback)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
