"""Analysis of a trained network before it is pruned: what is coupled, and what its own validation says of each part."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lightning_optim.cost.base import Subject
from lightning_optim.cost.macs import MACs
from lightning_optim.cost.parameters import Parameters
from lightning_optim.errors import ArtefactError, TargetError
from lightning_optim.graph.capture import capture_network
from lightning_optim.graph.coupling import Coupling, Group, couple
from lightning_optim.pruning.criterion.base import Criterion
from lightning_optim.pruning.sensitivity import Sensitivity, check_sparsities, sweep
from lightning_optim.pruning.structure.channel import Channel
from lightning_optim.pruning.structure.coupled import targeted_groups
from lightning_optim.pruning.structure.weight import Weight
from lightning_optim.quantization.mixed_precision.sensitivity import BitSensitivity, bit_sensitivity, quantizers_by_bits
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.quantizer.binary import Binary
from lightning_optim.quantization.quantizer.symmetric import Symmetric
from lightning_optim.quantization.simulation.simulator import Forward
from lightning_optim.recipe.evaluate import metric_of
from lightning_optim.report.analysis import Analysis, CoupledGroup
from lightning_optim.surgery.example import FirstCall
from lightning_optim.surgery.inputs import Inputs
from lightning_optim.surgery.layer_kinds import LAYERS, has_output_rows
from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.select import Targets, find_network, plain_name
from lightning_optim.surgery.torch_private import pytree


def analyze_network(  # noqa: PLR0913  # one keyword for each question that is asked
    module: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    *,
    criterion: Criterion,
    targets: Targets,
    sparsities: Sequence[float],
    metric: str,
    mode: Literal["max", "min"] = "max",
    network: str | None = None,
    bits: Sequence[int] = (),
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Analysis:
    """Couple the channels of a network, and prune each group and each layer alone, by masking, at each sparsity.

    Then each layer alone is rounded to each width, beside int8 for all else. Every point is one run of the module's own
    validation; weights are put back after it. Nothing is trained.

    Args:
        module: The trained module; it is unchanged when this returns.
        data: Where its validation batches come from.
        trainer: Runs them.
        criterion: Importance of a weight; must need the weights alone.
        targets: Layers to look at, by names relative to the module.
        sparsities: Fractions to drop, ascending, in ``(0, 1)``.
        metric: A name that the module logs in validation.
        mode: ``"max"`` if a higher metric is better, ``"min"`` if a lower one is.
        network: Name of the network in the module; ``None`` finds it, ``""`` is the module itself.
        bits: Widths of weights to try, 1 to 8; none leaves this out.
        tell: Called after each run of the validation with the number of runs so far, and about how many there will be.

    Raises:
        ArtefactError: If the module does not log the metric, or never calls its network.
        TargetError: If no target is left.
        ValueError: If the criterion needs to see data, or the sparsities do not ascend.
    """
    check_sparsities(sparsities)
    quantizers = [Symmetric(bits=width) if width > 1 else Binary() for width in bits]
    if quantizers:
        quantizers_by_bits(quantizers)
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
    name, live = find_network(module, network)
    layers = _layers(module, name, targets)

    done, total = itertools.count(1), 1

    def measure() -> float:
        found = metric_of(trainer.validate(module, datamodule=data, verbose=False), metric, "metric")
        tell(next(done), total)
        return found

    base, inputs = _first_run(live, measure)
    coupling = couple(capture_network(live, *inputs))
    weights = {f"{layer}.weight": live.get_parameter(f"{layer}.weight").detach() for layer in layers}
    pools = _pools(coupling, weights)
    total += len(sparsities) * (len(pools) + len(layers)) + (len(bits) * len(layers) + 1 if bits else 0)
    look = partial(sweep, live, layers, criterion=criterion, sparsities=sparsities, measure=measure)
    found = Sensitivity(
        metric=metric,
        mode=mode,
        base=base,
        sparsities=tuple(sparsities),
        groups=tuple(look(coupling, structure=Channel(shrink="never"))) if pools else (),
        layers=tuple(look(None, structure=Weight())),
    )
    analysis = _describe(live, coupling, pools, weights, found, inputs)
    return replace(analysis, bits=_bits(live, Inputs(*inputs), quantizers, measure, mode)) if quantizers else analysis


def _first_run(live: nn.Module, measure: Callable[[], float]) -> tuple[float, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The metric of the network as it is, and what its validation first calls it with."""
    example = FirstCall()
    example.watch(live)
    try:
        base = measure()
    finally:
        example.release()
    if not example:
        raise ArtefactError("the validation loop never called the network: set network to the part that it calls")
    # Validation runs in inference mode, and its tensors can't enter a graph.
    return base, pytree.tree_map_only(Tensor, torch.clone, (example.args, example.kwargs))


def _bits(
    live: nn.Module, inputs: Inputs, quantizers: Sequence[Quantizer], measure: Callable[[], float], mode: str
) -> BitSensitivity | None:
    """Drop in the module's own validation metric when one layer has few bits; ``None`` if none has an integer form."""

    def loss(forward: Forward) -> float:
        patches = Patches()
        patches.wrap(live, "forward", lambda _, *args, **kwargs: forward(*args, **kwargs))
        try:
            found = measure()
        finally:
            patches.undo()
        return -found if mode == "max" else found

    try:
        return bit_sensitivity(live, [inputs], quantizers, measure=loss)
    except TargetError:
        return None


def _layers(module: LightningModule, network_name: str, targets: Targets) -> list[str]:
    """Targeted layers by their name in the network."""
    prefix = f"{network_name}." if network_name else ""
    chosen = targets.select(module, LAYERS).items()
    names = [plain_name(name) for name, layer in chosen if has_output_rows(layer)]
    layers = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    if not layers:
        raise TargetError(f"all {len(names)} targeted layers lie outside {network_name!r}: {', '.join(names[:5])}")
    return layers


def _pools(coupling: Coupling, weights: Mapping[str, Tensor]) -> dict[str, Group]:
    try:
        return targeted_groups(coupling, weights)
    except TargetError:  # the layers are analyzed without groups
        return {}


def _describe(
    live: nn.Module,
    coupling: Coupling,
    pools: Mapping[str, Group],
    weights: Mapping[str, Tensor],
    found: Sensitivity,
    inputs: Any,
) -> Analysis:
    rows = next(len(leaf) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim())
    parameters, macs = (cost.prices(Subject(live, coupling, pools, *inputs)) for cost in (Parameters(), MACs()))
    groups = tuple(
        CoupledGroup(
            name=pool,
            channels=group.size,
            members=tuple((member.name, member.dim) for member in group.members),
            parameters=round(parameters.full - parameters({pool: 0})),
            macs=round((macs.full - macs({pool: 0})) / rows),
        )
        for pool, group in pools.items()
    )
    return Analysis(
        network=type(live).__name__,
        parameters=round(parameters.full),
        macs=round(macs.full / rows),
        groups=groups,
        frozen=tuple(name for name in weights if coupling.group_of(name, 0) is None),
        unknown=dict(coupling.unknown),
        sensitivity=found,
    )
