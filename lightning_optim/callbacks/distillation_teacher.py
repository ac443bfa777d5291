"""Knowledge distillation: a student is trained against a teacher as well as with its own loss."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_optim.callbacks.base import TechniqueCallback
from lightning_optim.callbacks.distillation.answers import TeacherAnswers
from lightning_optim.callbacks.distillation.learned import LearnedParts
from lightning_optim.callbacks.distillation.mutual_step import MutualStep, both_ways, check_losses
from lightning_optim.callbacks.distillation.student_copies import StudentCopies
from lightning_optim.callbacks.distillation.teacher_checks import check_teacher
from lightning_optim.callbacks.trainer.added_loss import AddedLoss, TrainingStep
from lightning_optim.callbacks.trainer.lightning_private import transfer_batch
from lightning_optim.callbacks.trainer.messages import tell
from lightning_optim.callbacks.trainer.rank_agreement import check_ranks_agree
from lightning_optim.checked import checked
from lightning_optim.distillation.cache.answer_cache import AnswerCache
from lightning_optim.distillation.initialization import LayerCopies
from lightning_optim.distillation.loss.base import Loss
from lightning_optim.distillation.objective import DistillationObjective, LossWeight
from lightning_optim.distillation.observation import FeatureTaps, Recording
from lightning_optim.distillation.place import Side
from lightning_optim.distillation.teacher.base import Teacher
from lightning_optim.distillation.teacher.loaded import LoadedTeacher
from lightning_optim.distillation.teacher.module import ModuleTeacher
from lightning_optim.distillation.teacher.peer import LoadedPeer, Peer
from lightning_optim.errors import SampleError, TapError
from lightning_optim.surgery.calls import NetworkCalls
from lightning_optim.surgery.containers import tensors_of
from lightning_optim.surgery.inputs import call_network
from lightning_optim.surgery.modes import evaluating
from lightning_optim.surgery.select import find_network
from lightning_optim.window import Window


@final
@checked
class DistillationTeacher(TechniqueCallback):
    """Knowledge distillation: adds to the loss of each training step how far the student is from a teacher.

    The loss becomes ``hard_weight * own loss + sum of weight * transfer loss``, each transfer loss averaged over the
    step's calls of the network. The teacher receives the very inputs that the network received, stays in evaluation
    mode, and belongs to this callback: it is in no ``state_dict``, no optimizer and no copy of the student. So does
    what learns inside a loss, such as the projection of a hint; its optimizer steps when the student's does. Validation
    and testing are left as they are.

    Each transfer loss is logged as ``distillation/<key of the loss>``, before it is multiplied by its weight; a
    ``Peer``'s own loss of the task as ``distillation/peer``.

    Args:
        teacher: Where the teacher comes from; a module may be given as it is.
        losses: One transfer loss, or several by key; ``None`` is the soft-target loss.
        cache: Where the teacher's answers are kept, so that it is asked once for each sample; ``None`` asks every time.
        initialize_from: Layers of the student that begin as layers of the teacher: name in the LightningModule ->
            name in the teacher. A ``*`` stands for layers in their order, of which the teacher may have a multiple:
            ``{"net.layer.*": "layer.*"}`` takes every second of six for three. ``None`` copies nothing.
        network: Name of the student's network in the LightningModule, ``""`` for the LightningModule itself;
            ``None`` finds it.
        weight: Factor of every transfer loss, or of each by key: numbers of at least 0, or schedules over ``window``.
        hard_weight: Factor of the LightningModule's own loss: a number of at least 0, or a schedule over ``window``.
        window: When to distil; before it opens nothing is changed. ``None`` is the whole fit.
        backward_index: Under manual optimization, which ``manual_backward`` of a step the losses join, from 0.
            They see the network's calls since the one before, and only that loss is multiplied by ``hard_weight``.
        name: Tells several instances in one Trainer apart: each needs a name of its own. Logs become
            ``distillation/<name>/<key>``.

    Raises:
        TypeError: If a teacher, loss or weight is of another kind.
        ValueError: If a value is out of range, or all weights are 0, so that there would be nothing to do.

    Example:
        >>> callback = DistillationTeacher(teacher=nn.Linear(4, 3), weight=0.9, hard_weight=0.1)
        >>> callback.state_key
        "DistillationTeacher{'name': None}"
    """

    def __init__(  # noqa: PLR0913  # one keyword for each question
        self,
        *,
        teacher: Teacher | nn.Module,
        losses: Loss | Mapping[str, Loss] | None = None,
        cache: AnswerCache | None = None,
        initialize_from: Mapping[str, str] | None = None,
        network: str | None = None,
        weight: LossWeight | Mapping[str, LossWeight] = 0.5,
        hard_weight: LossWeight = 0.5,
        window: Window | None = None,
        backward_index: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.teacher = ModuleTeacher(module=teacher) if isinstance(teacher, nn.Module) else teacher
        self._objective = DistillationObjective(losses, weight, hard_weight)
        self.losses, self.weight = self._objective.losses, self._objective.weights
        self.hard_weight = self._objective.hard_weight
        self.cache, self._answers = cache, TeacherAnswers(cache, self.losses)
        self.initialize_from = None if initialize_from is None else dict(initialize_from)
        self._layer_copies = None if initialize_from is None else LayerCopies(initialize_from)
        self.network, self.backward_index = network, backward_index
        self.window = Window() if window is None and self._objective.has_schedule else window
        self._calls, self._taps = NetworkCalls(), FeatureTaps()
        self._added = AddedLoss(
            self._add,
            begin=self._begin_step,
            end=self._end_step,
            window=self.window,
            backward_index=backward_index,
        )
        self._frozen: LoadedTeacher | None = None
        self._is_made = self._is_advised = False
        self._learned = LearnedParts()
        self._copies, self._network = StudentCopies(), ""
        self._mutual: MutualStep | None = None
        if isinstance(self.teacher, Peer):
            check_losses(self.losses, has_cache=cache is not None, initializes=initialize_from is not None)

    @property
    def teacher_module(self) -> nn.Module | None:
        """The teacher's network, once a fit has begun."""
        return None if self._frozen is None else self._frozen.module

    @override
    def prepare(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.release()
        self._is_made, self._is_advised, self._learned = False, False, LearnedParts()
        if self._frozen is None or self._frozen.copies or self._mutual is not None:  # what an earlier fit has trained
            module = self.teacher.load(lambda: self._find(pl_module)[1])
            check_teacher(module, pl_module)  # before it is frozen
            self._frozen = self.teacher.freeze(module)
        else:
            check_teacher(self._frozen.module, pl_module)
        if isinstance(self.teacher, Peer) and isinstance(self._frozen, LoadedPeer):
            self._mutual = MutualStep(self._frozen, self.teacher.make_optimizer)
            self._mutual.attach(trainer, pl_module, self.repeating_beside(trainer))
        self._initialize(trainer, pl_module)
        self._copies.start(trainer, self._frozen.copies)
        self._network = self._find(pl_module)[0] if self._frozen.copies else ""
        self._added.attach(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(trainer, pl_module)
        digest = self._loaded().digest() if trainer.world_size > 1 else ()
        settings = (self._objective, self.cache, self.window, self.backward_index, digest)
        check_ranks_agree(trainer, settings, "the settings of DistillationTeacher or the teacher's weights")
        self._rehearse(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._added.check(trainer)
        for parts in self._parts:
            parts.begin()
        self._answers.begin(trainer, self._loaded())

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for parts in self._parts:
            parts.note_step(trainer)
        self._copies.note_step(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._answers.end_batch(trainer, batch_idx)
        for parts in self._parts:
            parts.end_batch(trainer)
        self._copies.end_batch(trainer, self._network)

    @override
    def state_dict(self) -> dict[str, Any]:
        held = {
            "progress": self._added.state_dict(),
            "learned": self._learned.state_dict(),
            "peer": {} if self._mutual is None else self._mutual.parts.state_dict(),
            "copies": self._copies.state_dict(),
        }
        return {key: value for key, value in held.items() if value}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._added.load_state_dict(state_dict.get("progress", {}))
        self._learned.load_state_dict(state_dict.get("learned", {}))
        self._copies.load_state_dict(state_dict.get("copies", []))
        if self._mutual is not None:
            self._mutual.parts.load_state_dict(state_dict.get("peer", {}))

    def keep_nothing(self) -> None:
        """Ask the teacher every time from here on, and leave the cache as it is."""
        self._answers = TeacherAnswers(None, self.losses)

    def network_copies(self) -> Sequence[tuple[str, nn.Module]]:
        """Teachers that follow the student, each with the name of its network; they are cut as it is."""
        return [(self._network, module) for module in self._copies.following]

    @override
    def release(self) -> None:
        self._added.detach()
        if self._mutual is not None:
            self._mutual.detach()
        self._answers.close()
        self._calls.remove()
        self._taps.remove()
        if self._frozen is not None:
            self._frozen.release()

    @property
    def _parts(self) -> list[LearnedParts]:
        """What learns beside the student."""
        return [self._learned] if self._mutual is None else [self._learned, self._mutual.parts]

    def _find(self, pl_module: LightningModule) -> tuple[str, nn.Module]:
        return find_network(pl_module, self.network, needs_forward=False)

    def _initialize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the student begin as layers of the teacher, where a fit begins; what a checkpoint holds comes after."""
        if self._layer_copies is None or trainer.global_step > 0:
            return
        if self._loaded().copies:
            raise ValueError("initialize_from needs a teacher of its own weights, this one is made of the student")
        student, teacher = Side(pl_module, self._find(pl_module)[0]), Side(self._loaded().module)
        copied = self._layer_copies.copy(student, teacher)
        tell(trainer, f"the student begins as layers of its teacher: {', '.join(copied)}")

    def _loaded(self) -> LoadedTeacher:
        assert self._frozen is not None
        return self._frozen

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the network and place the teacher beside it, once every callback has set its own structure up."""
        if self._calls.name is not None:
            return
        name, network = self._find(pl_module)
        floats = (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
        self._loaded().place(trainer.strategy.root_device, next(floats, torch.float32))
        self._copies.begin(network)
        if self._mutual is not None:
            self._mutual.start(trainer.strategy.root_device)
        self._calls.attach(pl_module, name, network)
        student, teacher = self._objective.look_at(Side(pl_module, name), Side(self._loaded().module))
        self._taps.attach(pl_module, student)
        self._loaded().look_at(teacher)
        self._answers.look_at(teacher)

    def _rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare once on the module's example input, so that a wrong teacher is refused before any data is read.

        On several ranks this is left to the first training step: ranks might not reach this forward pass together.
        """
        example = pl_module.example_input_array
        if example is None or trainer.world_size > 1:
            return
        example = transfer_batch(pl_module, example)
        devices = [trainer.strategy.root_device] if trainer.strategy.root_device.type == "cuda" else []
        self._open()
        try:
            with evaluating(pl_module), torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
                call_network(pl_module, example)
                self._compare(self._answer(example), 0.0, example)
        except (TapError, SampleError):
            return  # forward may compute something else than the training step, of one sample without labels
        finally:
            self._end_step()

    def _open(self) -> None:
        self._calls.open()
        self._taps.open()

    def _begin_step(self, step: TrainingStep) -> None:
        # Lightning's learning-rate finder trains before this callback's on_fit_start.
        self._attach(step.pl_module.trainer, step.pl_module)
        self._open()

    def _end_step(self) -> None:
        self._calls.close()
        self._taps.close()

    def _add(self, loss: Tensor, step: TrainingStep) -> Tensor:
        if self._mutual is not None:
            return self._add_mutual(loss, step, self._mutual)
        pairs = self._answer(step.batch)
        self._advise(step, pairs[0][0])
        return self._total(loss, self._compare(pairs, step.progress, step.batch), step)

    def _add_mutual(self, loss: Tensor, step: TrainingStep, mutual: MutualStep) -> Tensor:
        """The student's loss; the peer's has its gradient in it, and not its value."""
        student = self._taps.take(self._calls.take())
        peer = mutual.run(step.pl_module, self._find(step.pl_module)[1])
        of_student, of_peer = both_ways(student, peer.calls)
        self.log_terms(step.pl_module, "distillation", {"peer": peer.loss})
        others = self._objective.compare(of_peer, step.progress, step.batch)
        theirs = self._objective.total(peer.loss, others, step.progress)
        mine = self._total(loss, self._objective.compare(of_student, step.progress, step.batch), step)
        return mine + (theirs - theirs.detach())

    def _total(self, loss: Tensor, values: Mapping[str, Tensor], step: TrainingStep) -> Tensor:
        self.log_terms(step.pl_module, "distillation", values)
        return self._objective.total(loss, values, step.progress)

    def _answer(self, batch: Any) -> list[tuple[Recording, Recording]]:
        return self._answers.answer(self._loaded(), self._taps.take(self._calls.take()), batch)

    def _advise(self, step: TrainingStep, student: Recording) -> None:
        is_first, self._is_advised = not self._is_advised, True
        if is_first and self.cache is None and step.pl_module.global_rank == 0:
            for text in self._loaded().advice(student.call, step.batch):
                warnings.warn(text, stacklevel=2)

    def _compare(self, pairs: Sequence[tuple[Recording, Recording]], progress: float, batch: Any) -> dict[str, Tensor]:
        if not self._is_made:
            self._make_learned(*pairs[0])
        return self._objective.compare(pairs, progress, batch)

    def _make_learned(self, student: Recording, teacher: Recording) -> None:
        self._is_made = True
        made = self._objective.make_learned(student, teacher)
        device = tensors_of(student.call.output)[0].device
        self._learned.start({key: (each, self.losses[key].make_optimizer) for key, each in made.items()}, device)
