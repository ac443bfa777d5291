"""A student whose user has written a teacher, a transfer loss and what learns in it into the module, and fits of it."""

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_optim import DistillationTeacher
from support import quiet

NARROW, WIDE = 4, 6  # channels of the student and of the teacher
WEIGHT, HARD_WEIGHT = 2.0, 0.5
LEARNING_RATE = 1e-2  # of what learns inside losses, and of the student


class Heads(nn.Module):
    """Two heads of queries or keys; these have no bias, whose gradient would be rounding that Adam magnifies."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return self.linear(x).unflatten(-1, (2, -1)).transpose(1, 2)


class Attend(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query, self.key = Heads(width), Heads(width)

    def forward(self, x):
        values = x.unflatten(-1, (2, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(self.query(x), self.key(x), values).transpose(1, 2).flatten(2)


class Net(nn.Module):
    """Convolutions, attention between the positions of the map, and a head; some have a layer that nothing uses."""

    def __init__(self, width, seed, has_spare=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem, self.block = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
            self.attend, self.head = Attend(width), nn.Linear(width, 4)
            self.spare = nn.Linear(2, 2) if has_spare else None

    def forward(self, x):
        x = F.relu(self.block(F.relu(self.stem(x)))).flatten(2).transpose(1, 2)
        return self.head((x + self.attend(x)).mean(1))


def make_teacher():
    return Net(WIDE, 100)


class Student(LightningModule):
    """The user's module.

    Args:
        has_spare: Whether its network has a layer that nothing uses.
        is_sharded: Whether ``fully_shard`` shards it over the ranks.
    """

    def __init__(self, has_spare=False, is_sharded=False):
        super().__init__()
        self.net, self.is_sharded = Net(NARROW, 0, has_spare), is_sharded

    def forward(self, x):
        return self.net(x)

    def configure_model(self):
        if self.is_sharded and not isinstance(self.net, FSDPModule):
            for layer in (self.net.stem, self.net.block, self.net.attend, self.net):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), LEARNING_RATE)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a loss may look at, in pairs of the student's and the teacher's.

    Args:
        blocks: Outputs of ``block``.
        outputs: Logits.
        attentions: Queries and keys of ``attend``.
        labels: Of the batch.
        progress: Share of the fit's batches that came before.
    """

    blocks: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor]
    attentions: tuple[tuple[Tensor, Tensor], ...]
    labels: Tensor
    progress: float

    @property
    def maps(self):
        return [*map(in_full, self.blocks)]  # anew for each loss: in half precision, their gradients meet there

    @property
    def logits(self):
        return [*map(in_full, self.outputs)]


class ByHand(Student):
    """Adds a loss of what is seen of both networks; what learns in it is a part of the module, as any user's is.

    Args:
        written: Makes the loss, a module that is given ``Seen``.
        is_apart: Whether what learns is kept out of the module, with an optimizer of its own and gradients that are
            averaged by hand: where the strategy would not average them, or the precision would convert it.
    """

    def __init__(self, written, is_apart=False, **settings):
        super().__init__(**settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = written()
        self.teacher = [make_teacher().requires_grad_(False).eval()]
        self.apart, self.written = ([made], None) if is_apart else ([], made)
        self.learned = [*made.parameters()]
        self.own = torch.optim.AdamW(self.learned, LEARNING_RATE) if is_apart and self.learned else None
        self.found = {}
        for side, net in enumerate((self.net, *self.teacher)):
            for name in ("block", "attend.query", "attend.key"):
                self.note(net, name, side)

    def note(self, net, name, side):
        def hook(module, inputs, output):
            self.found[side, name] = output

        net.get_submodule(name).register_forward_hook(hook)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        own = F.cross_entropy(logits, batch[1])  # before the transfer loss: so gradients add up in the same order
        answers = self.teacher[0](batch[0])
        epochs, batches = self.trainer.max_epochs, self.trainer.num_training_batches
        blocks, queries, keys = (
            tuple(self.found[side, name] for side in range(2)) for name in ("block", "attend.query", "attend.key")
        )
        progress = (self.current_epoch * batches + batch_idx) / (epochs * batches)
        seen = Seen(blocks, (logits, answers), tuple(zip(queries, keys, strict=True)), batch[1], progress)
        transfer = (self.written or self.apart[0])(seen)
        return own * HARD_WEIGHT + WEIGHT * transfer

    def on_fit_start(self):
        self.teacher[0].to(self.net.head.weight.dtype)

    def configure_optimizers(self):
        groups = [{"params": [*self.net.parameters()]}]
        if self.learned and self.own is None:
            groups.append({"params": self.learned})
        return torch.optim.AdamW(groups, LEARNING_RATE)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.own is not None:
            for parameter in self.learned if self.trainer.world_size > 1 else ():
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.trainer.world_size
            self.own.step()
            self.own.zero_grad()


def in_full(tensor):
    """The tensor in at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def exactly():
    """No autocast in what follows."""
    return torch.autocast("cpu", enabled=False)


def data(size=24):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(size, 1, 6, 6, generator=generator), torch.randint(0, 4, (size,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def distilling(losses):
    return DistillationTeacher(teacher=make_teacher(), losses=losses, weight=WEIGHT, hard_weight=HARD_WEIGHT)


def fit(module, *callbacks, size=24, **settings):
    torch.manual_seed(7)
    trainer = quiet(*callbacks, **{"max_epochs": 2} | settings)
    trainer.fit(module, data(size))
    return trainer
