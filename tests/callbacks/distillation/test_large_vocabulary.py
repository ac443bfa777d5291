"""A language model that learns from a teacher: the weights of the step by hand, without tensors that it would keep."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from lightning_optim import DistillationTeacher
from lightning_optim.distillation import ModuleTeacher, SoftTarget
from lightning_optim.distillation.functional import soft_target_loss
from lightning_optim.distillation.kernel import blocks
from support import quiet

pytestmark = pytest.mark.filterwarnings("ignore")
VOCABULARY, LENGTH, SAMPLES = 8192, 128, 4


class LanguageModel(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


class Student(LightningModule):
    """Learns the next token; with a teacher, from its answers too, as one would write it."""

    def __init__(self, teacher=None):
        super().__init__()
        self.net = LanguageModel(0)
        self.teacher = [teacher]  # not a part of this module

    def training_step(self, tokens, batch_idx):
        logits = self.net(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten())
        if self.teacher[0] is None:
            return loss
        with torch.no_grad():
            answer = self.teacher[0](tokens)
        return loss + soft_target_loss(logits, answer, 2.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, *callbacks):
    """Most bytes that were allocated at once, in tensors of logits; the weights after two steps."""
    tokens = torch.randint(0, VOCABULARY, (2 * SAMPLES, LENGTH), generator=torch.Generator().manual_seed(1))
    trainer = quiet(*callbacks, max_epochs=1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        trainer.fit(module, DataLoader(tokens, SAMPLES))
    level = highest = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            highest = max(highest, level)
    return highest / (4.0 * SAMPLES * LENGTH * VOCABULARY), [*module.net.parameters()]


def test_a_fit_ends_with_the_weights_of_the_step_by_hand_in_less_memory(monkeypatch):
    monkeypatch.setattr(blocks, "_LARGE", SAMPLES * LENGTH * VOCABULARY)  # a shorter test than with 32 MiB
    plain, _ = fit(Student())
    by_hand, expected = fit(Student(LanguageModel(1)))
    loss = SoftTarget(temperature=2.0, class_dim=-1)
    teacher = ModuleTeacher(module=LanguageModel(1))
    peak, weights = fit(Student(), DistillationTeacher(teacher=teacher, losses=loss, weight=1.0, hard_weight=1.0))
    assert all(torch.equal(*pair) for pair in zip(weights, expected, strict=True))
    assert by_hand > plain + 4.0
    assert peak < plain + 1.5  # the teacher's answer, and no more than it
