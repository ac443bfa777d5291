"""Copy of the student that serves as its teacher: begun with the fit, and part of a callback's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn, final

import torch
from torch import Tensor, nn

from lightning_optim.surgery.select import plain_name

Update = Callable[[Tensor, Tensor], Tensor]
"""What becomes of a weight of the teacher after a step of the student: ``(teacher's, student's) -> teacher's``."""

_HALF = (torch.bfloat16, torch.float16)


@final
class StudentCopy:
    """Copy of the student: its weights are those that the student has when a fit begins, or those of a checkpoint.

    Args:
        module: A copy of the student's network.
        update: What becomes of a weight after each step of the student; ``None`` if the copy stays as it is.

    Example:
        >>> student, teacher = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> copied = StudentCopy(teacher)
        >>> copied.begin(student)
        >>> torch.equal(teacher.weight, student.weight)
        True
    """

    def __init__(self, module: nn.Module, update: Update | None = None) -> None:
        self.module = module
        self._update = update
        self._has_begun = False

    @property
    def follows(self) -> bool:
        """Whether it goes on with the student, and so must have its shape."""
        return self._update is not None

    @torch.no_grad()
    def begin(self, student: nn.Module) -> None:
        """Take over the student's weights, unless a checkpoint's were loaded.

        Raises:
            ValueError: If the student's network is another than when it was copied, or an average would be too coarse.
        """
        coarse = next((each.dtype for each in self.module.parameters() if each.dtype in _HALF), None)
        if self.follows and coarse is not None:
            raise ValueError(
                f"an average of weights in {str(coarse).removeprefix('torch.')}, as the student's are, would lose "
                "small steps: set the teacher's precision to 'float32'"
            )
        if not self._has_begun:
            self._fill(_tensors_of(student), "student's network")
        self._has_begun = True

    @torch.no_grad()
    def follow_step(self, student: nn.Module) -> None:
        """Follow the student after a step of its optimizer: weights are updated, buffers copied."""
        if self._update is None:
            return
        theirs = _tensors_of(student)
        weights = {plain_name(name) for name, _ in self.module.named_parameters(remove_duplicate=False)}
        for name, mine in _unique(_tensors_of(self.module)):
            other = _matching(name, mine, theirs, "student's network").to(mine)
            learns = name in weights and mine.is_floating_point()
            mine.copy_(self._update(mine, other) if learns else other)

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers, which ranks may have different values of."""
        return [value for value in self.module.buffers() if value.numel()]

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers by plain name, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in _tensors_of(self.module).items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned.

        Raises:
            ValueError: If the state is of another network.
        """
        self._fill(state, "checkpoint")
        self._has_begun = True

    def _fill(self, state: Mapping[str, Tensor], source: str) -> None:
        own = _tensors_of(self.module)
        for name in sorted(state.keys() - own.keys()):
            _refuse(name, "nothing", source, list(state[name].shape))
        values = {name: _matching(name, mine, state, source) for name, mine in own.items()}
        for name, mine in own.items():
            mine.copy_(values[name])


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {plain_name(name): value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _unique(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under its first name: one that layers share is to be updated once."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.data_ptr() if tensor.numel() else id(tensor)
        if place not in seen:
            yield name, tensor
        seen.add(place)


def _matching(name: str, mine: Tensor, state: Mapping[str, Tensor], source: str) -> Tensor:
    found = state.get(name)
    if found is None or found.shape != mine.shape:
        _refuse(name, list(mine.shape), source, "nothing" if found is None else list(found.shape))
    return found


def _refuse(name: str, mine: object, source: str, other: object) -> NoReturn:
    raise ValueError(
        f"the teacher is a copy of the student's network, made when the fit was set up: its {name!r} is {mine}, the "
        f"{source} has {other} there. Build all layers in __init__, and leave a search over architectures to another "
        "fit, or give a teacher of its own, such as Checkpoint"
    )
