"""Independence of samples: whether a teacher's answer to one is the same whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_optim.distillation.cache.sample import num_samples, select_samples
from lightning_optim.distillation.observation import Recording
from lightning_optim.errors import TeacherError
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.tap import ModuleCall
from lightning_optim.surgery.torch_private import BatchNorm

_TOLERANCE = 0.01  # of the largest number; rounding is far less, another neighbour's influence far more


def is_doubtful(teacher: nn.Module) -> bool:
    """Whether a network holds what may mix samples: layers whose batch axis is the second, norms over the batch.

    Example:
        >>> is_doubtful(nn.LSTM(2, 3)), is_doubtful(nn.LSTM(2, 3, batch_first=True))
        (True, False)
    """
    return any(
        (isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and not module.batch_first)
        or (isinstance(module, BatchNorm) and not module.track_running_stats)
        for module in teacher.modules()
    )


def check_independent(ask: Callable[[ModuleCall, Any], Recording], call: ModuleCall, batch: Any) -> None:
    """Ask twice for the last sample, the second time among copies of itself; refuse a teacher that answers otherwise.

    Args:
        ask: The teacher.
        call: A call of the student.
        batch: The batch.

    Raises:
        TeacherError: If the two answers differ.
    """
    count = num_samples(call)
    if count < 2:
        return
    answer, again = ask(call, batch), ask(*select_samples(call, batch, [count - 1] * count))
    for first, second in zip(_answers(answer), _answers(again), strict=True):
        if first.ndim and len(first) == count and not _is_close(first[-1], second[-1]):
            raise TeacherError(
                "the teacher answers otherwise to the same sample among others, so its answers cannot be kept by "
                "sample: the batch axis must be the first of all inputs and outputs, and nothing may be random or "
                "normalized over the batch; distil without a cache"
            )


def _answers(answer: Recording) -> list[Tensor]:
    return tensors_of((answer.call.output, [*answer.features.values()]))


def _is_close(first: Tensor, second: Tensor) -> bool:
    first, second = first.double(), second.double()
    largest = first.abs().nan_to_num(posinf=0.0).amax() if first.numel() else 0.0
    return bool(((first == second) | ((first - second).abs() <= _TOLERANCE * largest)).all())
