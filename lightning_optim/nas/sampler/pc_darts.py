"""Partially connected search (PC-DARTS): a part of the channels goes through the options, the others go past them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.nas.forward.chosen_input import ChosenInput
from lightning_optim.nas.forward.mixture import MixedForward, Mixture, can_go_past
from lightning_optim.nas.forward.switchable import switchable_forwards
from lightning_optim.nas.sampler.architecture_parameters import ArchitectureSteps
from lightning_optim.nas.sampler.expected_cost import ExpectedCost
from lightning_optim.nas.sampler.learned import LearnedSampler, LearnedState, check_temperature
from lightning_optim.nas.sampler.path import Path
from lightning_optim.nas.supernet import Supernet
from lightning_optim.schedule.base import Schedule
from lightning_optim.schedule.constant import Constant


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class PCDARTS(LearnedSampler):
    """Partially connected search (PC-DARTS; Xu et al., 2020; arXiv:1907.05737, equation 1).

    As ``DARTS``, but in each step a random part of a choice's channels goes through its options, while the others go
    past them unchanged: options without weights gain less from weights that are unfinished. Output of a choice:
    ``S * sum_i softmax(alpha / T)_i o_i(S * x) + (1 - S) * x``, with a mask ``S`` over channels.

    The options run on all channels, those outside the part being zero: what the paper saves in memory, for operations
    that are built for fewer channels, is not saved here. Every choice must return as many channels as it receives;
    where it makes maps smaller, the maximum of what is pooled goes past it, as in the paper's code.

    Args:
        steps: Steps of the architecture parameters.
        channel_share: Share of the channels that goes through the options, in ``(0, 1]``; at least one channel does.
        temperature: ``T`` over the progress of the fit, above 0.
        auxiliary_skip: Weight of a skip connection beside the options over the progress of the fit; ``None`` has none.
        cost: Expected cost that is added to the loss of the architecture steps; ``None`` adds nothing.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> PCDARTS(channel_share=0.5).channel_share
        0.5
    """

    steps: ArchitectureSteps = field(default_factory=ArchitectureSteps)
    channel_share: float = 0.25
    temperature: Schedule = field(default_factory=lambda: Constant(value=1.0))
    auxiliary_skip: Schedule | None = None
    cost: ExpectedCost | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if not 0.0 < self.channel_share <= 1.0:
            raise ValueError(f"channel_share must lie in (0, 1], got {self.channel_share}")

    @override
    def start(self, supernet: Supernet, seed: int) -> PCDARTSState:
        return PCDARTSState(supernet, seed, self)


@final
class PCDARTSState(LearnedState):
    """PC-DARTS in one supernet."""

    def __init__(self, supernet: Supernet, seed: int, setting: PCDARTS) -> None:
        super().__init__(supernet, seed, setting)
        self._setting, self._channels = setting, _channels_of(supernet)

    @override
    def paths(self, step: int, progress: float) -> tuple[Path, ...]:
        return (self._mixed(step, progress, learns=False),)

    @override
    def architecture_path(self, step: int, progress: float) -> Path:
        return self._mixed(step, progress, learns=True)

    def _mixed(self, step: int, progress: float, *, learns: bool) -> Path:
        temperature, skip = self._setting.temperature(progress), self.skip_weight(progress)
        mixtures = {}
        for name in self.parameters.values:
            weights = self.parameters.probabilities(name, temperature)
            options = dict(enumerate(weights if learns else weights.detach()))
            mixtures[name] = Mixture(weights=options, skip=skip, channels=self._drawn(step, name))
        return Path(architecture=self.parameters.pick(), mixtures=mixtures)

    def _drawn(self, step: int, name: str) -> Tensor:
        count = self._channels[name]
        mask = torch.zeros(count, dtype=torch.bool)
        num_drawn = max(1, round(self._setting.channel_share * count))
        mask[self.draw(step, "channels", name).sample(range(count), num_drawn)] = True
        return mask


def _channels_of(supernet: Supernet) -> dict[str, int]:
    """By decision, the channels that are mixed; where several modules follow one, those of the narrowest."""
    root = supernet.site.root
    mixed = [forward for forward in switchable_forwards(root) if isinstance(forward, MixedForward)]
    names = {module: name for name, module in root.named_modules()}
    calls = supernet.site.calls(list({names[forward.owner]: None for forward in mixed}))
    channels: dict[str, int] = {}
    for forward in mixed:
        name = names[forward.owner]
        if isinstance(forward, ChosenInput):
            x = y = forward.wire.argument.read(calls[name].args, calls[name].kwargs)
        else:
            x, y = calls[name].args[0] if calls[name].args else None, calls[name].output
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() > 1 and can_go_past(x, y)):
            raise ValueError(
                f"partial channels go past a choice, but {name!r} does not return the shape that it receives, nor one "
                "of smaller sizes: leave it out of the space, or take DARTS"
            )
        channels[forward.decision] = min(channels.get(forward.decision, x.shape[1]), x.shape[1])
    return channels
