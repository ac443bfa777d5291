"""Shape model: a model that computes shapes alone, which shows whether its code still runs without some channels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_optim.errors import reason_of
from lightning_optim.graph.norm_shapes import NormShapes
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.copies import copy_model
from lightning_optim.surgery.cut import CutPlan, apply_cut
from lightning_optim.surgery.torch_private import FakeTensorMode, pytree


@final
@dataclass(frozen=True, slots=True)
class Objection:
    """Objection to a cut: why the model's code cannot follow it.

    Args:
        reason: The reason, in one line.
        module: Name of the innermost module whose code failed; empty for the model's own.
    """

    reason: str
    module: str


_Shapes = list[tuple[int, ...]]
_Run = Callable[[nn.Module], _Shapes]


@final
class ShapeModel:
    """Shape model: modules over tensors without content, so that a trial costs neither memory nor arithmetic.

    Python code writes shapes down in many ways: as an attribute, a constant, a width divided by a number of heads.
    Only a run shows whether it follows a cut.

    Args:
        model: A model in evaluation mode; left untouched.
        args: Positional inputs.
        kwargs: Keyword inputs.

    Example:
        >>> model = ShapeModel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (torch.ones(2, 3),), {})
        >>> kept = [0, 2]
        >>> objection = model.objection({"0.weight": [(0, torch.tensor(kept))], "0.bias": [(0, torch.tensor(kept))]})
        >>> objection.reason, objection.module
        ('a and b must have same reduction dim, but got [2, 2] X [4, 2].', '1')
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mode: AbstractContextManager[Any] = nullcontext()
        self._hollow_out(model, args, kwargs, torch.device("meta"))
        if self._evaluated is None or self._trained is None:
            # Code that makes tensors on a device of its own needs the slower kind.
            del self._evaluated
            vars(self).pop("_trained", None)
            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
            self._hollow_out(model, args, kwargs, None)

    def _hollow_out(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device | None
    ) -> None:
        def hollow(tensor: Tensor) -> Tensor:
            with self._mode:
                empty = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device or tensor.device
                )
            return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

        self._model = _with_tensors(model, hollow)
        self._batch = pytree.tree_map_only(Tensor, hollow, (args, kwargs))

    def objection(self, plan: CutPlan) -> Objection | None:
        """Why the model cannot be evaluated after a cut; ``None`` if it can, or if that needs numbers.

        Raises:
            ShrinkError: If the plan does not fit the model.
        """
        return self._compare(plan, self._evaluated, self._evaluate)

    def objection_in_training(self, plan: CutPlan) -> Objection | None:
        """Why the model cannot go through a training step after a cut; ``None`` if it can, or if that needs numbers.

        Raises:
            ShrinkError: If the plan does not fit the model.
        """
        return self._compare(plan, self._trained, self._train)

    @cached_property
    def _evaluated(self) -> _Shapes | None:
        return self._shapes(self._evaluate)

    @cached_property
    def _trained(self) -> _Shapes | None:
        return self._shapes(self._train)

    def _shapes(self, run: _Run) -> _Shapes | None:
        """Shapes of the outputs before any cut; ``None`` for code that needs numbers to take its way."""
        try:
            return run(_with_tensors(self._model, lambda tensor: tensor))
        except Exception:
            return None

    def _compare(self, plan: CutPlan, shapes: _Shapes | None, run: _Run) -> Objection | None:
        if shapes is None:
            return None
        model = _with_tensors(self._model, lambda tensor: tensor)
        apply_cut(model, plan)
        try:
            found = run(model)
        except Exception as error:
            return Objection(reason_of(error), _innermost(error, model))
        if found == shapes:
            return None
        return Objection(f"the output's shape would change from {shapes} to {found}", "")

    def _evaluate(self, model: nn.Module) -> _Shapes:
        return self._run(model.eval(), self._batch)

    def _train(self, model: nn.Module) -> _Shapes:
        """A training step's forward pass; batch norm needs two examples."""
        return self._run(model.train(), pytree.tree_map_only(Tensor, _doubled, self._batch))

    def _run(self, model: nn.Module, batch: tuple[tuple[Any, ...], dict[str, Any]]) -> _Shapes:
        args, kwargs = batch
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self._mode, NormShapes():
            outputs = model(*args, **kwargs)
        return [tuple(leaf.shape) for leaf in tensors_of(outputs)]


def _innermost(error: BaseException, model: nn.Module) -> str:
    """Name of the module whose method is the innermost that an error went through."""
    names = {id(module): name for name, module in model.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() else tensor


def _with_tensors(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the modules, over changed parameters and buffers."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return copy_model(model, {tensor: change(tensor) for tensor in tensors})
