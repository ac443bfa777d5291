"""Dispatch to one of several operations; the user's own operation stays in its place."""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import reduce
from operator import add
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_optim.nas.forward.mixture import MixedForward, Mixture, run_mixture
from lightning_optim.nas.forward.switchable import GatingForward
from lightning_optim.search.decision import Condition
from lightning_optim.surgery.torch_private import pytree

RESERVED = "_candidates"
_EVERY = -1


@final
class Candidates(nn.Module):
    """Candidates added to one operation, below the one reserved prefix of its state.

    A checkpoint of the plain model has no such keys and loads strictly all the same: the candidates then
    keep the weights they have. Called, it hands its input on, since the user's own operation may
    be an ``nn.Sequential``, which calls whatever lies in it.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.register_load_state_dict_pre_hook(_fill_in)  # type: ignore[no-untyped-call]  # torch leaves it bare

    @override
    def forward(self, value: Any) -> Any:
        return value


def _fill_in(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    if not any(key.startswith(prefix) for key in state_dict):
        state_dict.update(module.state_dict(prefix=prefix))


@final
class Dispatch(GatingForward, MixedForward):
    """Dispatch to the operation that the architecture chooses.

    Args:
        owner: The user's own operation, option 0.
        decision: Name of the decision.
        candidates: The other options, from 1 on.
    """

    def __init__(self, owner: nn.Module, decision: str, candidates: Mapping[str, nn.Module]) -> None:
        super().__init__(owner)
        self.decision, self._names, self.active = decision, tuple(candidates), 0
        self._mixture: Mixture | None = None
        self._candidates = Candidates(candidates).train(owner.training)

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._mixture is not None:
            return run_mixture(self._mixture, self._run, *args, **kwargs)
        if self.active != _EVERY:
            return self._run(self.active, *args, **kwargs)
        outputs = [pytree.tree_flatten(self._run(option, *args, **kwargs)) for option in range(len(self._names) + 1)]
        structure, by_option = outputs[0][1], [leaves for leaves, _ in outputs]
        return pytree.tree_unflatten([_superposed(leaves) for leaves in zip(*by_option, strict=True)], structure)

    @property
    @override
    def follows(self) -> Set[str]:
        return {self.decision}

    @property
    @override
    def runs_as_built(self) -> bool:
        return self.active == 0

    @override
    def gates(self) -> list[tuple[Set[nn.Module], Condition]]:
        added = [set(self._candidates.get_submodule(name).modules()) for name in self._names]
        runs = [set(self.owner.modules()) - set(self._candidates.modules()), *added]
        return [(modules, Condition(decision=self.decision, options=(option,))) for option, modules in enumerate(runs)]

    @override
    def activate(self, architecture: Mapping[str, int]) -> None:
        self.active, self._mixture = architecture.get(self.decision, max(self.active, 0)), None

    @override
    def mix(self, mixture: Mixture) -> None:
        self._mixture = mixture

    @override
    def forget(self, decisions: Set[str]) -> None:
        assert self.decision not in decisions, "a dispatch has one decision and is detached with it"

    @override
    def superpose(self) -> None:
        self.active, self._mixture = _EVERY, None

    @override
    def attach(self) -> None:
        super().attach()
        self.owner.add_module(RESERVED, self._candidates)

    @override
    def detach(self) -> None:
        super().detach()
        vars(self.owner)["_modules"].pop(RESERVED, None)

    @override
    def extracted(self) -> nn.Module:
        return self.owner if self.active == 0 else self._candidates.get_submodule(self._names[self.active - 1])

    def _run(self, option: int, *args: Any, **kwargs: Any) -> Any:
        if option == 0:
            return self.__wrapped__(*args, **kwargs)
        return self._candidates.get_submodule(self._names[option - 1])(*args, **kwargs)


def _superposed(leaves: tuple[Any, ...]) -> Any:
    return reduce(add, leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def output_layout(output: Any) -> list[str]:
    """Structure, shapes and types of an operation's output, to compare one with another.

    Example:
        >>> output_layout((torch.ones(2, 3), None))
        ['tuple of 2', '[2, 3] float32', 'None']
    """
    leaves, structure = pytree.tree_flatten(output)
    head = [] if structure.is_leaf() else [f"{structure.type.__name__} of {structure.num_children}"]
    return head + [
        f"{list(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}" if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in leaves
    ]
