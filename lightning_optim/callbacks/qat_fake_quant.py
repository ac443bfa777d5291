"""Quantization-aware training (QAT) of any LightningModule."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.quantization.calibration import calibrate_module
from lightning_optim.callbacks.quantization.elastic_norms import refuse_elastic_norms
from lightning_optim.callbacks.quantization.learned_values import checked_rate, train_values
from lightning_optim.callbacks.quantization.simulated_calls import SimulatedCalls
from lightning_optim.callbacks.trainer.clock import FitProgress
from lightning_optim.callbacks.trainer.monitors import SuspendedMonitors
from lightning_optim.callbacks.trainer.own_parameters import loss_scale_of, scale_of_step
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.checked import check_type, checked
from lightning_optim.errors import ArtefactError
from lightning_optim.export.fallbacks import Fallbacks
from lightning_optim.export.onnx_file.open_shapes import Dynamic
from lightning_optim.export.quantized import QuantizedExport
from lightning_optim.export.quantized_network import QuantizedNetwork, describe_placement
from lightning_optim.export.runtime.base import Runtime
from lightning_optim.export.verification import Verification, verify
from lightning_optim.quantization.layers import LayerQuantizers, assign_layers
from lightning_optim.quantization.observer.base import Observer
from lightning_optim.quantization.observer.moving_average import MovingAverage
from lightning_optim.quantization.post_training.base import PostTraining
from lightning_optim.quantization.post_training.run import apply_methods
from lightning_optim.quantization.quantizer.affine import Affine
from lightning_optim.quantization.quantizer.base import Quantizer
from lightning_optim.quantization.quantizer.symmetric import Symmetric
from lightning_optim.quantization.settings import QuantizationSettings, checked_freeze, checked_layers, excluded_modules
from lightning_optim.quantization.simulation.calibration import run_calibration
from lightning_optim.quantization.simulation.ranges_of_ranks import merge_ranges
from lightning_optim.quantization.simulation.simulator import Simulator
from lightning_optim.quantization.simulation.watch import Watch
from lightning_optim.surgery.select import Targets, check_initialized, find_network, named_modules
from lightning_optim.surgery.torch_private import uncompiled
from lightning_optim.window import Window


@final
@checked
class QATFakeQuant(TechniqueCallback):
    """Quantization-aware training: trains a network under the rounding of its later integer form, and exports it.

    Parameters stay the same objects and the checkpoint keeps its keys; ranges of activations are part of the callback's
    own state. Validation, test and prediction compute exactly what is deployed: batch norms folded, biases rounded.
    Within the window, the first batch shows the operators and the second one their ranges; from the third batch on, the
    network is simulated. So it goes for each operator that a later batch is the first to run. What validation alone
    runs stays in floating point, and a warning names it. Where training skips blocks at random (LayerDrop), values of
    evaluation can lie beyond all that training has shown, most of all behind batch norms: ``calibrate`` of a callback
    that has not trained learns ranges from evaluation. A network that is compiled is simulated as one graph by the
    same compiler; what cannot be one graph is simulated in Python, with a warning.

    Args:
        network: Plain name of the network in the LightningModule; ``None`` finds the only child with parameters.
        targets: Modules whose operators run in integers; ``None`` takes all.
        window: When to simulate; ``None`` is the whole fit.
        weight_quantizer: Quantizer of weights; ``None`` is int8, symmetric, with a scale per output channel.
        activation_quantizer: Quantizer of activations; ``None`` is uint8 with a zero point.
        observer: How ranges of batches become one; ``None`` averages them.
        layers: Quantizers of some layers in place of these, by keys of your choice (mixed precision).
        freeze: Fractions of the window after which a part is frozen, in ``(0, 1]``: ``observer`` (0.9: ranges stay as
            they are) and ``batch_norm`` (0.5: running statistics are used in training too); 1 is never.
        learning_rate: Largest relative change of a learned step in one batch, about; ``None`` is 0.01. Only for
            quantizers that learn their steps.
        name: Tells several instances in one Trainer apart: each needs a name of its own.

    Example:
        >>> callback = QATFakeQuant(network="net", freeze={"batch_norm": 0.7})
        >>> callback.state_key
        "QATFakeQuant{'name': None}"
    """

    def __init__(  # noqa: PLR0913  # one keyword for each question
        self,
        *,
        network: str | None = None,
        targets: Targets | None = None,
        window: Window | None = None,
        weight_quantizer: Quantizer | None = None,
        activation_quantizer: Quantizer | None = None,
        observer: Observer | None = None,
        layers: Mapping[str, LayerQuantizers] | None = None,
        freeze: Mapping[str, float] | None = None,
        learning_rate: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.network, self.targets = network, targets
        self.window = window or Window()
        self._progress = FitProgress(self.window)
        self.freeze = checked_freeze(freeze or {})
        self._loss_scale: float | None = None
        self.weight_quantizer, self.activation_quantizer = (
            weight_quantizer or Symmetric(),
            activation_quantizer or Affine(),
        )
        self.observer, self.layers = observer or MovingAverage(), checked_layers(layers or {})
        self._settings.check()
        self._simulator = self._settings.start()
        self.learning_rate = checked_rate(learning_rate, self._simulator.quantizers)
        self._calls, self._monitors = SimulatedCalls(), SuspendedMonitors()
        self._owner: LightningModule | None = None
        self._live: nn.Module | None = None
        self._is_trained = False

    @property
    def _settings(self) -> QuantizationSettings:
        return QuantizationSettings(self.weight_quantizer, self.activation_quantizer, self.observer, self.layers)

    @property
    def is_simulating(self) -> bool:
        """Whether operators and ranges are known, so that the network computes as its integer form."""
        return self._simulator.is_ready

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._owner is not None and self._owner is not pl_module:
            # Ranges and progress are those of another model.
            self._simulator, self._progress = self._settings.start(), FitProgress(self.window)
            self._calls, self._is_trained = SimulatedCalls(), False
        self._owner = pl_module

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        course = (self.window, sorted(self.freeze.items()), self.learning_rate)
        settings = (self.network, self.targets, self._settings, course)
        check_ranks_agree(trainer, settings, f"the settings of {self.state_key}")
        self._attach(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress.check(trainer)
        self._simulator.learned.move(pl_module.device)
        self._monitors.begin(trainer, is_reached=self.is_simulating)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach_for_evaluation(trainer, pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach_for_evaluation(trainer, pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach_for_evaluation(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        progress = self._progress.read(trainer)
        if progress is None:
            return
        # Operators and ranges come first, even in a window that closes within a few batches.
        is_frozen = progress >= self.freeze["observer"] and self.is_simulating
        self._calls.watch = Watch.NEW if is_frozen else Watch.ALL
        self._calls.folds = progress >= self.freeze["batch_norm"]

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._loss_scale = loss_scale_of(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._calls.finds_parts():
            self._calls.attach(pl_module, self._network_of(None), self._simulator)
        elif self._calls.watch is not Watch.NOTHING:
            self._end_observation(trainer, may_be_idle=pl_module.automatic_optimization and not outputs)
        self._simulator.forget_tensors()
        scale = scale_of_step(trainer, self._loss_scale)
        train_values(trainer, self._simulator.learned, self.learning_rate, scale)
        self._loss_scale = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not at each batch: it would cost as much as the ranges do.
        pl_module.log("quantization/is_simulating", float(self.is_simulating), sync_dist=True)

    @override
    def state_dict(self) -> dict[str, Any]:
        state = {"progress": self._progress.state_dict(), "monitors_wait": self._monitors.is_waiting}
        state["is_trained"] = self._is_trained
        return self._simulator.state_dict() | state | {"parts": self._calls.parts}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._simulator.load_state_dict(state_dict)
        self._progress.load_state_dict(state_dict["progress"])
        self._is_trained = state_dict["is_trained"]
        self._monitors.restore(was_waiting=state_dict["monitors_wait"])
        self._calls.parts = None if state_dict["parts"] is None else tuple(state_dict["parts"])

    def calibrate(
        self, model: nn.Module, data: Any, *, num_batches: int = 32, methods: Sequence[PostTraining] = ()
    ) -> None:
        """Learn operators and ranges of a trained model without training it (post-training quantization).

        It can then be simulated, exported, or trained further under this callback. After a fit, what was learned in it
        stays, and only operators and ranges are added that were missing, such as those that evaluation alone runs.

        Args:
            model: The trained LightningModule, whose own validation calls the network, or a network alone.
            data: For a LightningModule, loaders of validation batches or a data module. For a network, batches: a
                mapping holds its keyword inputs, a tuple or list its positional ones, all else is its only input.
            num_batches: How many batches to take at most, at least 1.
            methods: Methods that change the model's weights, in this order, so that rounding costs less accuracy;
                without any, the weights stay as they are. With any, all ranges are learned anew.

        Raises:
            TypeError: If a method is something else.
            ValueError: If there is no batch, or one holds NaN or infinities; nothing has changed then.
        """
        check_type("methods", methods, Sequence[PostTraining])
        network = self._network_of(model)
        name = find_network(model, self.network)[0] if isinstance(model, LightningModule) else ""
        start = self._settings.starter(model if name else network, name, network, self.targets)
        simulator = self._completed(start(), network)
        if isinstance(model, LightningModule):
            inputs: list[Any] = [*calibrate_module(simulator, model, network, data, num_batches=num_batches)]
        else:
            inputs = list(islice(data, max(num_batches, 0)))
            run_calibration(simulator, network, inputs, num_batches=num_batches)
        self._simulator = apply_methods(network, simulator, inputs, methods, start)
        self._live, self._owner = network, model if isinstance(model, LightningModule) else None

    def _completed(self, fresh: Simulator, network: nn.Module) -> Simulator:
        """Return a copy of what was learned in a fit of this network; a fresh simulator if nothing was."""
        if not (self._is_trained and self.is_simulating):
            return fresh
        self._check_plan(network)
        known = copy.deepcopy(self._simulator)
        known.place(fresh.excluded, fresh.layers.assigned)
        return known

    def describe(self) -> str:
        """Return the placement as a table: every operator, whether it computes in integers, its bits and its range.

        The last line gives the share of the multiply-accumulates (MACs) that is to run in integers.
        """
        return describe_placement(self._simulator)

    def simulated(self, model: nn.Module | None = None) -> Callable[..., Any]:
        """Return a function of the network's inputs that computes its output as deployed, on a copy.

        Args:
            model: The LightningModule or its network; ``None`` is the one that was trained.

        Raises:
            RuntimeError: If there are no ranges yet, or no model was trained or given.
        """
        return QuantizedNetwork(self._network_of(model), self._simulator).simulated()

    def export(  # noqa: PLR0913, PLR0917  # one keyword for each question
        self,
        path: str | Path,
        model: nn.Module | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        fallbacks: Fallbacks = "named",
        runtime: Runtime | str = "onnxruntime",
        batches: Iterable[Any] = (),
        min_agreement: float = 0.99,
        max_error: float = 0.05,
        dynamic: Dynamic | None = None,
        batch: int | None = None,
    ) -> QuantizedExport:
        """Write the network as a file whose layers run as integer kernels; the live model stays as it is.

        The file is loaded in its runtime and compared with the simulation before it is moved to ``path``.

        Args:
            path: The file to write.
            model: The LightningModule or its network; ``None`` is the one that was trained.
            args: Example positional inputs of the network; without any, those of the first batch in the window.
            kwargs: Example keyword inputs.
            fallbacks: Whether what has no integer kernel may stay in floating point: ``"named"`` (yes, and the result
                names it), ``"refused"`` (only excluded layers), or a sequence of kernels, such as ``"Add"``.
            runtime: The runtime, or its name: ``"onnxruntime"``, ``"openvino"``, ``"executorch"`` or ``"tensorrt"``.
            batches: Inputs on which runtime and simulation are compared, each a tensor, a sequence with one per
                positional input, or a mapping of keyword inputs; without any, the example inputs.
            min_agreement: Smallest share of samples with the same class, in ``[0, 1]``, for outputs that have classes.
            max_error: Largest relative error of every output, at least 0.
            dynamic: Argument of the network's ``forward`` -> its dimensions that are open beside the batch, each with a
                name, such as ``{"images": {2: "height", 3: "width"}}``; two other sizes are compared as well. Without
                it, the file takes the example's sizes alone: ``dimensions`` of the result says what is open.
            batch: The only batch that the file takes, for code that needs a number; ``None`` opens it.

        Raises:
            ExportError: If the network can't be exported, if nothing would be multiplied in integers or something stays
                in floating point that may not, or if an output of the runtime is further from the simulation's than
                accepted.
            RuntimeError: If no model was trained or given.
        """
        return QuantizedNetwork(self._network_of(model), self._simulator).export(
            path,
            args,
            kwargs,
            fallbacks=fallbacks,
            runtime=runtime,
            batches=batches,
            min_agreement=min_agreement,
            max_error=max_error,
            dynamic=dynamic,
            batch=batch,
        )

    @staticmethod
    def verify(path: str | Path, batches: Iterable[Any]) -> Verification:
        """Compare an exported file in ONNX Runtime with an emulation of its integer kernels, value by value.

        Args:
            path: The file, exported for ONNX Runtime.
            batches: Each a tensor, or a sequence with one per input; labels not included.

        Returns:
            How many values of the outputs were compared, and how many are equal bit for bit.
        """
        return verify(path, batches)

    def _network_of(self, model: nn.Module | None) -> nn.Module:
        if model is None:
            if self._live is None:
                raise RuntimeError("no model was trained under this callback: pass model")
            return self._live
        network = find_network(model, self.network)[1] if isinstance(model, LightningModule) else model
        return uncompiled(network)

    def _attach(self, pl_module: LightningModule) -> None:
        name, network = find_network(pl_module, self.network, needs_forward=False)
        network = uncompiled(network)
        check_initialized(network, name)
        excluded = excluded_modules(pl_module, name, network, self.targets)
        assigned = assign_layers(pl_module, network, self.layers)
        self._check_plan(network)
        refuse_elastic_norms(network)
        self.release()
        self._simulator.place(excluded, assigned)
        self._live = network
        self._calls.attach(pl_module, network, self._simulator)

    def _attach_for_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            return  # attached already
        self._attach(pl_module)
        if not self.is_simulating:
            warnings.warn(
                f"{self.state_key} has no ranges, so the network runs in floating point: "
                "pass the ckpt_path of a checkpoint that was trained under it",
                stacklevel=2,
            )

    def _check_plan(self, network: nn.Module) -> None:
        plan = self._simulator.plan
        known = {"", *named_modules(network)}
        unknown = sorted({op.path for op in plan.operators.values()} - known) if plan is not None else []
        if unknown:
            raise ArtefactError(
                f"{self.state_key} holds ranges of another model: {type(network).__name__} has no {unknown[0]!r}; "
                "resume from a checkpoint of this model"
            )

    def _end_observation(self, trainer: Trainer, *, may_be_idle: bool) -> None:
        was_simulating, was_planned = self.is_simulating, self._simulator.plan is not None
        device = trainer.strategy.root_device
        self._simulator.finish_batch(
            lambda ranges, news, take_in: merge_ranges(ranges, device, news, take_in), waits=False
        )
        self._calls.watch, self._is_trained = Watch.NOTHING, True
        if not was_planned and not may_be_idle:  # a step that returns None has perhaps called nothing
            self._calls.check_reached(self._network_of(None), self._simulator)
        if self.is_simulating and not was_simulating:
            self._monitors.resume(trainer)

    @override
    def release(self) -> None:
        self._calls.release()
        self._monitors.release()
        self._simulator.discard_batch()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the live model and what is set on it out of copies and pickles."""
        return {**vars(self), "_monitors": SuspendedMonitors(), "_owner": None, "_live": None}
