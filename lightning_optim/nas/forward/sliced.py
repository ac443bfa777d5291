"""Sliced forward: a module runs on the first channels of its own tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.errors import TargetError
from lightning_optim.nas.forward.switchable import SwitchableForward, switchable_forwards
from lightning_optim.surgery.cut import apply_cut

Cuts = dict[str, list[tuple[int, Tensor]]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """Slicing: one dimension of one tensor, which follows one decision.

    Args:
        decision: Name of the decision.
        tensor: Name of a parameter or buffer of the module itself, or of an integer attribute that counts
            its channels.
        dim: The dimension that shrinks.
        index: Positions along ``dim`` of every channel, shape [channels, positions per channel].
        counts: Channels kept, per option.
    """

    decision: str
    tensor: str
    dim: int
    index: Tensor
    counts: tuple[int, ...]

    def dropped(self, option: int) -> Tensor:
        """Positions that an option leaves out."""
        return self.index[self.counts[option] :].flatten()


@final
class SlicedForward(SwitchableForward):
    """Sliced forward: runs the owner's forward while its tensors are cut to the active width.

    Slicing costs a few percent of the step of a plain narrow layer, where masking costs the full width.
    Buffers are sliced as views, so what batch norm writes lands in the full buffer.

    Args:
        owner: Any module that uses its parameters in its own forward.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__(owner)
        self._slicings: list[Slicing] = []
        self._options: dict[str, int] = {}
        self._path = _Path()
        self._known: dict[tuple[int, ...], _Path] = {}
        self.is_open = False

    def add(self, slicing: Slicing) -> None:
        """Follow one more decision, at full width until it is taken.

        Raises:
            TargetError: If another decision has these channels already.
        """
        for other in self._slicings:
            is_same_place = (other.tensor, other.dim) == (slicing.tensor, slicing.dim)
            if is_same_place and other.decision != slicing.decision and torch.isin(other.index, slicing.index).any():
                raise TargetError(
                    f"{slicing.decision!r} would vary positions of a {slicing.tensor!r} that {other.decision!r} varies "
                    "already, in the same layer or one coupled to it; give them to one entry of the space"
                )
        self._slicings.append(slicing)
        self._options.setdefault(slicing.decision, len(slicing.counts) - 1)
        self._known.clear()

    @property
    @override
    def follows(self) -> Set[str]:
        return self._options.keys()

    @property
    @override
    def runs_as_built(self) -> bool:
        return not self._path.cuts

    @override
    def forget(self, decisions: Set[str]) -> None:
        """Stop following these decisions."""
        self._slicings = [slicing for slicing in self._slicings if slicing.decision not in decisions]
        self._options = {name: option for name, option in self._options.items() if name not in decisions}
        self._known.clear()
        self.activate({})

    @property
    def cuts(self) -> Cuts:
        """Positions kept by the active architecture, by tensor; empty at full width."""
        return self._path.cuts

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._path.cuts:
            return self.__wrapped__(*args, **kwargs)
        with self.sliced():
            return self.__wrapped__(*args, **kwargs)

    @override
    def activate(self, architecture: Mapping[str, int]) -> None:
        self._options = {name: architecture.get(name, option) for name, option in self._options.items()}
        key = tuple(self._options.values())
        if key not in self._known:
            with torch.inference_mode(False):  # positions found in a validation loop serve training too
                self._known[key] = _path_of(self.owner, self._find_cuts())
        self._path = self._known[key]

    @override
    def extracted(self) -> nn.Module:
        return self.owner  # which has been cut

    @override
    def superpose(self) -> None:
        self._path = _Path()

    def _find_cuts(self) -> Cuts:
        dropped: dict[tuple[str, int], list[Tensor]] = {}
        for slicing in self._slicings:
            gone = slicing.dropped(self._options[slicing.decision])
            if gone.numel():
                dropped.setdefault((slicing.tensor, slicing.dim), []).append(gone)
        cuts: Cuts = {}
        for (name, dim), parts in dropped.items():
            keeps = torch.ones(_length(self.owner, name, dim), dtype=torch.bool)
            keeps[torch.cat(parts)] = False
            cuts.setdefault(name, []).append((dim, keeps.nonzero().flatten()))
        return cuts

    @contextmanager
    def sliced(self) -> Iterator[None]:
        """Context in which the owner holds the slices of the active path; a second one inside changes nothing."""
        path, own = self._path, vars(self.owner)
        if self.is_open or not path.cuts:
            yield
            return
        attributes = {name: own[name] for name in path.attributes}
        full: dict[str, tuple[Tensor, Tensor]] = {}
        try:
            for name, windows in path.parameters.items():
                whole = own["_parameters"][name]
                # The extracted layer holds its weight in one piece; the same layout is what makes both bit-equal.
                full[name] = whole, _slice(whole, windows).contiguous()
                own["_parameters"][name] = full[name][1]
            for name, windows in path.buffers.items():
                whole = own["_buffers"][name]
                full[name] = whole, _slice(whole, windows)
                own["_buffers"][name] = full[name][1]
            own.update(path.attributes)
            self.is_open = True
            yield
        finally:
            self.is_open = False
            own.update(attributes)
            for name, (whole, part) in full.items():
                if name in path.parameters:
                    own["_parameters"][name] = whole
                    continue
                came, own["_buffers"][name] = own["_buffers"][name], whole
                if came is not part or any(window.kept is not None for window in path.buffers[name]):
                    _write_back(whole, came, path.cuts[name])


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """What is kept along one dimension: a run of positions; or any, if they are given."""

    dim: int
    first: int
    count: int
    kept: Tensor | None


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """What the owner becomes on one path, made ready so that a step only slices.

    Args:
        cuts: Positions kept, by tensor or integer.
        parameters: Windows of each parameter.
        buffers: Windows of each buffer.
        attributes: Values of what describes their shapes.
    """

    cuts: Cuts = field(default_factory=dict)
    parameters: dict[str, tuple[_Window, ...]] = field(default_factory=dict)
    buffers: dict[str, tuple[_Window, ...]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


def _path_of(owner: nn.Module, cuts: Cuts) -> _Path:
    if not cuts:
        return _Path()
    windows = {name: tuple(_window(dim, kept) for dim, kept in each) for name, each in cuts.items()}
    own = vars(owner)
    return _Path(
        cuts,
        {name: windows[name] for name in cuts if name in own["_parameters"]},
        {name: windows[name] for name in cuts if name in own["_buffers"]},
        _attributes_after(owner, cuts),
    )


def _window(dim: int, kept: Tensor) -> _Window:
    first, count = int(kept[0]), kept.numel()
    return _Window(dim, first, count, None if int(kept[-1]) - first + 1 == count else kept)


def cut_plan(root: nn.Module) -> Cuts:
    """Cut plan: what the active architecture cuts from each tensor of ``root``, by the tensor's name."""
    names = {id(module): name for name, module in root.named_modules()}
    plan: Cuts = {}
    for forward in switchable_forwards(root):
        if isinstance(forward, SlicedForward):
            prefix = names[id(forward.owner)]
            plan.update({f"{prefix}.{name}" if prefix else name: cuts for name, cuts in forward.cuts.items()})
    return plan


def sliced_forward(owner: nn.Module) -> SlicedForward:
    """The module's sliced forward, which is attached if it has none."""
    for forward in switchable_forwards(owner):
        if isinstance(forward, SlicedForward) and forward.owner is owner:
            return forward
    forward = SlicedForward(owner)
    forward.attach()
    return forward


def _store(owner: nn.Module, name: str) -> dict[str, Any] | None:
    own = vars(owner)
    stores: tuple[dict[str, Any], ...] = (own["_parameters"], own["_buffers"])
    return next((store for store in stores if name in store), None)


def _length(owner: nn.Module, name: str, dim: int) -> int:
    store = _store(owner, name)
    length: int = vars(owner)[name] if store is None else store[name].shape[dim]
    return length


def _slice(tensor: Tensor, windows: tuple[_Window, ...]) -> Tensor:
    for window in windows:
        if window.kept is None:
            tensor = tensor.narrow(window.dim, window.first, window.count)
        else:
            tensor = tensor.index_select(window.dim, window.kept.to(tensor.device))
    return tensor


def _write_back(full: Tensor, part: Tensor, cuts: list[tuple[int, Tensor]]) -> None:
    if part.is_meta or part.untyped_storage().data_ptr() == full.untyped_storage().data_ptr():
        return
    grid = [torch.arange(length, device=full.device) for length in full.shape]
    for dim, kept in cuts:
        grid[dim] = kept.to(full.device)
    full[torch.meshgrid(grid, indexing="ij")] = part.to(full.dtype)


def _attributes_after(owner: nn.Module, cuts: Cuts) -> dict[str, Any]:
    # What a physical cut changes beside the tensors (groups, normalized_shape ...), asked of the cut itself on a
    # hollow twin, so that the path and the extracted layer cannot differ.
    own = vars(owner)
    twin = type(owner).__new__(type(owner))
    vars(twin).update({name: value for name, value in own.items() if name != "forward"})
    hollow = {name: None if value is None else nn.Parameter(value.to("meta"), requires_grad=False)
              for name, value in own["_parameters"].items()}  # fmt: skip
    buffers = {name: None if value is None else value.to("meta") for name, value in own["_buffers"].items()}
    children = own["_modules"] if isinstance(owner, nn.MultiheadAttention) else {}  # it reads its output projection
    vars(twin).update(_parameters=hollow, _buffers=buffers, _modules=children)
    apply_cut(twin, cuts)
    return {name: value for name, value in vars(twin).items()
            if isinstance(value, (int, tuple, list)) and name in own and value != own[name]}  # fmt: skip
