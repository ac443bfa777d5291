"""Selection of the weights that a penalty looks at."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from torch import nn

from lightning_optim.errors import TargetError
from lightning_optim.regularization.penalty.base import Penalty
from lightning_optim.surgery.select import Targets


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A parameter by where it stands, so that one that takes its place is found there.

    Args:
        layer: The module that it is a parameter of.
        attribute: Its name there.
    """

    layer: nn.Module
    attribute: str

    @property
    def parameter(self) -> nn.Parameter:
        """What stands there now."""
        return self.layer.get_parameter(self.attribute)


def select_weights(root: nn.Module, key: str, penalty: Penalty, targets: Targets) -> dict[str, Place]:
    """Return the weights that a penalty looks at, by plain name, in the model's order; a shared one once.

    A penalty on the network as a whole looks at none of them.

    Args:
        root: Where to look.
        key: Key of the penalty, for messages.
        penalty: The penalty.
        targets: The layers.

    Raises:
        TargetError: If targets match nothing that the penalty can look at, or a layer lacks the parameter.

    Example:
        >>> from lightning_optim.regularization import L1
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> list(select_weights(net, "l1", L1(), Targets()))
        ['0.weight']
    """
    found: dict[str, Place] = {}
    if not penalty.treatable:
        return found
    layers = targets.select(root, penalty.treatable)
    reached = {name for name, layer in layers.items() if penalty.parameter_names(layer)}
    for glob in targets.include:
        if not any(fnmatchcase(name, glob) for name in reached):
            raise TargetError(
                f"penalty {key!r}: target {glob!r} matches no module that has a weight for {_name(penalty)}; "
                f"name the layers themselves, such as {f'{glob}.*'!r}"
            )
    ids: set[int] = set()
    for name in layers:
        if name in reached:
            _note(found, ids, name, layers[name], penalty, key)
    return found


def select_layers(
    root: nn.Module, network: nn.Module, targets: Targets, parameter_names: Callable[[nn.Module], list[str]]
) -> list[nn.Module]:
    """Return the layers of a network that are chosen and have parameters, in the model's order.

    Args:
        root: Where names begin.
        network: The network, which lies in it.
        targets: The layers.
        parameter_names: Names of a layer's own parameters that count.

    Raises:
        TargetError: If a glob matches no layer of the network that has one.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> select_layers(net, net, Targets(), lambda layer: [*dict(layer.named_parameters(recurse=False))])
        [Linear(in_features=3, out_features=2, bias=True)]
    """
    inside = {id(module) for module in network.modules()}
    chosen = targets.select(root, (nn.Module,))
    found = {name: each for name, each in chosen.items() if id(each) in inside and parameter_names(each)}
    for glob in targets.include:
        if not any(fnmatchcase(name, glob) for name in found):
            raise TargetError(
                f"target {glob!r} matches no module of the network that has weights of its own; name the layers "
                f"themselves, such as {f'{glob}.*'!r}"
            )
    return list(found.values())


def check_trained(key: str, weights: dict[str, Place], trained: Collection[int]) -> None:
    """Refuse a penalty on weights that nothing would move.

    Args:
        key: Key of the penalty.
        weights: What it looks at.
        trained: ``id`` of each parameter that an optimizer has; empty if optimizers are not known.

    Raises:
        TargetError: Naming the first weight that is frozen, or that no optimizer has.
    """
    for name, place in weights.items():
        if not place.parameter.requires_grad:
            reason = "is frozen"
        elif trained and id(place.parameter) not in trained:
            reason = "is in no optimizer"
        else:
            continue
        raise TargetError(
            f"penalty {key!r} on {name!r} would do nothing, since that {reason}: leave it out in targets.exclude, or "
            "train it"
        )


def _note(found: dict[str, Place], ids: set[int], name: str, layer: nn.Module, penalty: Penalty, key: str) -> None:
    own = dict(layer.named_parameters(recurse=False))
    for attribute in penalty.parameter_names(layer):
        if attribute not in own:
            raise TargetError(
                f"penalty {key!r} needs a parameter {attribute!r} of {name!r} ({type(layer).__name__}), which has none "
                "of its own (it may be computed from others): leave the layer out in targets.exclude"
            )
        if id(own[attribute]) not in ids:
            ids.add(id(own[attribute]))
            found[f"{name}.{attribute}"] = Place(layer, attribute)


def _name(penalty: Penalty) -> str:
    return type(penalty).__name__
