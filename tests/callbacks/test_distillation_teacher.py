import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_optim
from lightning_optim import DistillationTeacher, Window
from lightning_optim.distillation import Checkpoint, ModuleTeacher, SoftTarget
from lightning_optim.distillation.functional import soft_target_loss
from lightning_optim.errors import ArtefactError, TapError, TargetError, TeacherError
from lightning_optim.schedule import Linear
from support import quiet

pytestmark = pytest.mark.filterwarnings("ignore")


def make_net(classes=5, width=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes))


def make_teacher(classes=5):
    return make_net(classes, width=16, seed=100)


class Student(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_net()

    def forward(self, x):
        return self.net(x)

    def own_loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.own_loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.own_loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class HandWritten(Student):
    """What the callback should come to, written into the module."""

    hard_weight, weight, temperature = 0.25, 0.5, 2.0

    def __init__(self):
        super().__init__()
        self.teacher = [make_teacher().eval()]

    def own_loss(self, batch):
        x, y = batch
        logits = self(x)
        with torch.no_grad():
            teacher_logits = self.teacher[0](x)
        distilled = soft_target_loss(logits, teacher_logits, self.temperature)
        return F.cross_entropy(logits, y) * self.hard_weight + self.weight * distilled


def distil(teacher=None, **settings):
    defaults = {"losses": SoftTarget(temperature=2.0), "weight": 0.5, "hard_weight": 0.25}
    return DistillationTeacher(teacher=teacher or make_teacher(), **(defaults | settings))


def data(n=32):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, 6, generator=generator), torch.randint(0, 5, (n,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def fit(module, *callbacks, ckpt_path=None, max_epochs=2, validate=False, **settings):
    torch.manual_seed(7)
    trainer = quiet(*callbacks, max_epochs=max_epochs, **settings)
    trainer.fit(module, data(), data() if validate else None, ckpt_path=ckpt_path)
    return trainer


def assert_same_weights(first, second):
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def assert_untouched(module):
    assert not {"training_step", "manual_backward", "forward", "log", "on_train_epoch_end"} & set(vars(module))
    assert not any(child._forward_hooks for child in module.modules())


class ReturnsDict(Student):
    def training_step(self, batch, batch_idx):
        return {"loss": self.own_loss(batch), "seen": len(batch)}


class SkipsSome(Student):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else self.own_loss(batch)


class OneArgument(Student):
    def training_step(self, batch):
        return self.own_loss(batch)


class Manual(Student):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.own_loss(batch))
        optimizer.step()


@pytest.mark.parametrize("kind", [Student, ReturnsDict, SkipsSome, OneArgument, Manual])
def test_weights_equal_hand_written_distillation(kind):
    student, reference = kind(), type("Reference", (HandWritten, kind), {"training_step": kind.training_step})()
    fit(student, distil())
    fit(reference)
    assert_same_weights(student, reference)
    assert_untouched(student)


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 0.1},
        {"precision": "64-true"},
        {"precision": "bf16-true"},
    ],
    ids=str,
)
def test_weights_equal_hand_written_under_trainer_settings(settings):
    student, reference = Student(), HandWritten()
    if "true" in settings.get("precision", ""):
        kind = torch.float64 if "64" in settings["precision"] else torch.bfloat16
        reference.teacher[0].to(kind)
    fit(student, distil(), **settings)
    fit(reference, **settings)
    assert_same_weights(student, reference)


def test_module_itself_may_be_the_network():
    class Whole(LightningModule):
        def __init__(self):
            super().__init__()
            net = make_net()
            self.body, self.head = net[:3], net[3]

        def forward(self, x, *, scale=1.0):
            return self.head(self.body(x)) * scale

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0], scale=1.0), batch[1])

        configure_optimizers = Student.configure_optimizers

    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_teacher()

        def forward(self, x, *, scale):
            return self.net(x) * scale

    student, reference = Whole(), HandWritten()
    fit(student, distil(Teacher()))
    fit(reference)
    for mine, other in zip(student.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    assert_untouched(student)


def test_network_called_twice_is_taught_in_the_mean_of_its_calls():
    class Twice(Student):
        def own_loss(self, batch):
            x, y = batch
            return F.cross_entropy(self(x), y) + F.cross_entropy(self(-x), y)

    class Reference(Twice):
        def own_loss(self, batch):
            x, y = batch
            teacher, first, second = make_teacher().eval(), self(x), self(-x)
            with torch.no_grad():
                answers = teacher(x), teacher(-x)
            distilled = (soft_target_loss(first, answers[0], 2.0) + soft_target_loss(second, answers[1], 2.0)) / 2
            return (F.cross_entropy(first, y) + F.cross_entropy(second, y)) * 0.25 + 0.5 * distilled

    student, reference = Twice(), Reference()
    fit(student, distil(), max_epochs=1)
    fit(reference, max_epochs=1)
    assert_same_weights(student, reference)


def test_second_backward_of_manual_optimization_may_be_chosen():
    class TwoBackwards(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self(batch[0]).pow(2).mean())
            self.manual_backward(self.own_loss(batch))
            optimizer.step()

    student = TwoBackwards()
    reference = type("Reference", (HandWritten, TwoBackwards), {"training_step": TwoBackwards.training_step})()
    fit(student, distil(backward_index=1))
    fit(reference)
    assert_same_weights(student, reference)
    with pytest.raises(ValueError, match=r"backward_index=2 needs 3 calls of manual_backward .* there were 2"):
        fit(TwoBackwards(), distil(backward_index=2))


def test_manual_step_without_manual_backward_is_refused():
    class Forgets(Manual):
        def training_step(self, batch, batch_idx):
            self.own_loss(batch).backward()
            self.optimizers().step()

    student = Forgets()
    with pytest.raises(TapError, match=r"in place of loss.backward\(\)"):
        fit(student, distil())
    assert_untouched(student)


@pytest.mark.parametrize("compile_net", [False, True])
def test_compiled_module_trains_as_the_plain_one(compile_net):
    def build(module):
        if not compile_net:
            return torch.compile(module, backend="aot_eager")
        module.net = torch.compile(module.net, backend="aot_eager")
        return module

    student, reference = Student(), HandWritten()
    compiled = build(student)
    fit(compiled, distil(), max_epochs=1)
    fit(reference, max_epochs=1)
    for mine, other in zip(student.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other)


def test_schedules_walk_through_the_window_and_leave_what_is_before_it():
    class Weighed(HandWritten):
        def own_loss(self, batch):
            step = self.trainer.global_step
            progress = (step - 2) / 6
            self.hard_weight, self.weight = (1.0, 0.0) if step < 2 else (1.0 - progress, 2.0 * progress)
            return super().own_loss(batch)

    student, reference = Student(), Weighed()
    window = Window(begin=2, end=8, unit="step")
    schedules = {"weight": Linear(start=0.0, end=2.0), "hard_weight": Linear(start=1.0, end=0.0)}
    fit(student, distil(window=window, **schedules))
    fit(reference)
    assert_same_weights(student, reference)


def test_window_that_never_opens_is_refused():
    with pytest.raises(ValueError, match="window opens at epoch 5"):
        fit(Student(), distil(window=Window(begin=5, unit="epoch")))


class Stateless(Student):
    """Takes its batch by index, since a resumed Trainer starts the loader of an epoch anew."""

    def training_step(self, batch, batch_idx):
        x, y = (column.view(-1, 8, *column.shape[1:])[batch_idx] for column in data().dataset.tensors)
        return self.own_loss((x, y))


class Killed(RuntimeError):
    pass


class SavesAndDies(Callback):
    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)
            raise Killed


@pytest.mark.parametrize("at", [3, 4])
def test_resume_is_bit_equal_and_keys_are_the_users(at, tmp_path):
    whole, killed, resumed = Stateless(), Stateless(), Stateless()
    schedule = Linear(start=1.0, end=0.0)
    fit(whole, distil(weight=schedule))
    with pytest.raises(Killed):
        fit(killed, distil(weight=schedule), SavesAndDies(tmp_path / "c.ckpt", at))
    assert_untouched(killed)
    content = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert set(content["state_dict"]) == set(Student().state_dict())
    fit(resumed, distil(weight=schedule), ckpt_path=tmp_path / "c.ckpt")
    assert_same_weights(whole, resumed)
    fit(Student(), ckpt_path=tmp_path / "c.ckpt")


def test_one_callback_serves_two_fits():
    callback, reference = distil(), HandWritten()
    first, second = Student(), Student()
    fit(first, callback)
    fit(second, callback)
    fit(reference)
    assert_same_weights(first, reference)
    assert_same_weights(second, reference)


def test_two_instances_add_up_and_log_apart():
    student, reference = Student(), HandWritten()
    callbacks = distil(weight=0.25, name="a"), distil(weight=0.25, hard_weight=1.0, name="b")
    trainer = fit(student, *callbacks)
    fit(reference)
    assert {"distillation/a/soft_target", "distillation/b/soft_target"} <= set(trainer.callback_metrics)
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert_untouched(student)


def test_loss_is_logged_unweighted_and_validation_is_left_alone():
    callback, student = distil(weight=0.125), Student()
    trainer = fit(student, callback, validate=True, max_epochs=1)
    before = copy.deepcopy(student)
    x, y = data().dataset.tensors
    expected = F.cross_entropy(student.eval()(x), y)
    torch.testing.assert_close(trainer.callback_metrics["val_loss"], expected)
    assert trainer.callback_metrics["distillation/soft_target"] > 0
    trainer.validate(student, data(), verbose=False)
    assert_same_weights(student, before)
    assert_untouched(student)


class Probe(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.train()
        self.copy = copy.deepcopy(pl_module)
        self.pickled = pickle.dumps(pl_module.net)


def test_copy_of_the_student_holds_no_teacher_and_teacher_stays_as_it_is():
    teacher, probe, student = make_teacher(), Probe(), Student()
    before = copy.deepcopy(teacher)
    fit(student, distil(teacher), probe)
    assert_same_weights(teacher, before)
    assert not any(module.training for module in teacher.modules())
    assert_untouched_methods = {"training_step", "manual_backward"}
    assert all(
        vars(probe.copy).get(name) is None or vars(probe.copy)[name].__self__ is probe.copy
        for name in assert_untouched_methods
    )
    assert len(probe.pickled) < 4 * sum(tensor.nbytes + 500 for tensor in student.net.state_dict().values())


def test_learning_from_a_teacher_file_equals_learning_from_the_module(tmp_path):
    torch.save({f"model.{name}": tensor for name, tensor in make_teacher().state_dict().items()}, tmp_path / "t.ckpt")
    first, second = Student(), Student()
    fit(first, distil(Checkpoint(path=tmp_path / "t.ckpt", architecture=make_net(width=16, seed=3))))
    fit(second, distil())
    assert_same_weights(first, second)


def test_layers_built_in_configure_model_are_taught():
    class Late(Student):
        def __init__(self):
            LightningModule.__init__(self)

        def configure_model(self):
            if not hasattr(self, "net"):
                self.net = make_net()

    student, reference = Late(), HandWritten()
    fit(student, distil())
    fit(reference)
    assert_same_weights(student, reference)


@dataclass
class Output:
    logits: torch.Tensor


def test_logits_inside_an_output_object_are_found():
    class Wraps(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return Output(self.inner(x))

    class Model(Student):
        def __init__(self):
            super().__init__()
            self.net = Wraps(self.net)

        def forward(self, x):
            return self.net(x).logits

    student, reference = Model(), HandWritten()
    fit(student, distil(Wraps(make_teacher()), losses=SoftTarget(temperature=2.0, output="logits")))
    fit(reference)
    assert_same_weights(student.net.inner, reference.net)


def test_teacher_of_other_classes_is_refused_before_any_weight_changes():
    student = Student()
    before = copy.deepcopy(student)
    with pytest.raises(ValueError, match="7 and 5 classes along axis -1") as caught:
        fit(student, distil(make_teacher(classes=7)))
    assert "\n" not in str(caught.value)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name))
    assert_untouched(student)


def test_example_input_finds_a_wrong_teacher_before_any_data_is_read():
    class NoData:
        def __iter__(self):
            raise AssertionError("data was read")

        def __len__(self):
            return 1

    student = Student()
    student.example_input_array = torch.randn(4, 6)
    before = copy.deepcopy(student)
    trainer = quiet(distil(make_teacher(classes=7)), max_epochs=1)
    with pytest.raises(ValueError, match="7 and 5 classes"):
        trainer.fit(student, NoData())
    assert_same_weights(student, before)
    assert all(module.training for module in student.modules())


def test_example_input_does_not_change_training():
    student, reference = Student(), HandWritten()
    student.example_input_array = torch.randn(4, 6)
    fit(student, distil())
    fit(reference)
    assert_same_weights(student, reference)


class Segments(LightningModule):
    """A map of classes, ``[B, C, H, W]``."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv1d(1, 5, 3, padding=1)

    def forward(self, x):
        return self.net(x.unsqueeze(1)).unsqueeze(-1)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("has_example", [False, True])
def test_maps_without_an_axis_of_classes_are_refused_before_any_weight_changes(has_example):
    student, batches = Segments(), data()
    if has_example:
        student.example_input_array = torch.randn(8, 6)
        batches = DataLoader(Absent())
    before = copy.deepcopy(student)
    message = r"of logits of shape \[8, 5, 6, 1\]: set class_dim=-1 if they are \[B, T, C\], or class_dim=1"
    with pytest.raises(ValueError, match=message):
        quiet(DistillationTeacher(teacher=Segments(), network=""), max_epochs=1).fit(student, batches)
    assert_same_weights(student, before)
    loss = SoftTarget(class_dim=1)
    quiet(DistillationTeacher(teacher=Segments(), network="", losses=loss), max_epochs=1).fit(student, data())


class Absent(torch.utils.data.Dataset):
    def __getitem__(self, index):
        raise AssertionError("data was read")

    def __len__(self):
        return 8


def test_a_teacher_of_other_inputs_is_named():
    student = Student()
    before = copy.deepcopy(student)
    with pytest.raises(TeacherError, match=r"^the teacher, a Linear, .* shape \[8, 6\]: RuntimeError: mat1") as caught:
        fit(student, distil(nn.Linear(7, 5)))
    assert "the teacher's" not in str(caught.value)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name))


def test_a_teacher_that_runs_out_of_memory_says_so_itself():
    class Large(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory"):
        fit(Student(), distil(Large()))


class Bypasses(Student):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(6, 5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: (Bypasses(), distil(network="spare")), TapError, "no forward pass went through 'spare'"),
        (lambda: (Bypasses(), distil(network="")), None, ""),
        (lambda: (Student(), distil(network="nett")), TargetError, "did you mean 'net'"),
        (lambda: (Student(), distil(Checkpoint(path="absent.ckpt"))), ArtefactError, "absent.ckpt does not exist"),
    ],
)
def test_bad_place_is_refused_in_one_line_and_leaves_nothing_behind(make, error, message):
    student, callback = make()
    if error is None:
        fit(student, callback, max_epochs=1)
        return
    with pytest.raises(error, match=message) as caught:
        fit(student, callback)
    assert "\n" not in str(caught.value)
    assert_untouched(student)


class Parts(Student):
    """Its step calls the layers of its network, and never the network."""

    def own_loss(self, batch):
        x = batch[0]
        for layer in self.net:
            x = layer(x)
        return F.cross_entropy(x, batch[1])


@pytest.mark.parametrize("network", ["", "net"])
def test_step_that_calls_parts_is_distilled_from_the_first_one_to_the_last(network):
    whole, parts = Student(), Parts()
    parts.load_state_dict(whole.state_dict())
    for student, name in ((whole, "net"), (parts, network)):
        fit(student, distil(network=name))
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


def test_step_that_calls_a_part_twice_or_no_module_at_all_is_refused():
    class Twice(Student):
        def own_loss(self, batch):
            return F.cross_entropy(self.net[0](batch[0]), batch[1]) + self.net[0](-batch[0]).sum()

    class Functional(Student):
        def own_loss(self, batch):
            return F.cross_entropy(F.linear(batch[0], self.net[0].weight), batch[1])

    for kind, message in ((Twice, r"the parts 'net.0', and 'net.0' 2 times"), (Functional, "no forward pass went")):
        student = kind()
        with pytest.raises(TapError, match=message):
            fit(student, distil(network=""))
        assert_untouched(student)


def test_teacher_that_is_the_student_is_refused():
    student = Student()
    with pytest.raises(ValueError, match=r"'0.weight' is the student's own.*copy.deepcopy"):
        fit(student, distil(student.net))
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"teacher": "t.ckpt"}, TypeError, "teacher must be a Teacher or a Module, got the string"),
        ({"window": {"begin": 0}}, TypeError, "window must be a Window or None, got dict"),
        ({"backward_index": -1}, ValueError, "backward_index must be at least 0"),
        ({"weight": 0.0}, ValueError, "teacher would do nothing"),
        ({"weight": 1.5, "hard_weight": -0.5}, ValueError, "hard_weight must be a number of at least 0"),
    ],
)
def test_bad_setting_is_refused_when_it_is_made(settings, error, message):
    with pytest.raises(error, match=message):
        distil(**settings)


def test_instances_have_their_own_state_key():
    assert distil(name="a").state_key != distil(name="b").state_key


def test_configuration_composes_and_builds(tmp_path):
    conf = next(path for path in lightning_optim.__path__ if not path.endswith("lightning_optim")) + "/conf"
    overrides = [
        "+callbacks=distillation_teacher",
        "callbacks.distillation_teacher.losses.soft_target.temperature=2",
        "lightning_optim/distillation/teacher@callbacks.distillation_teacher.teacher=module",
        "callbacks.distillation_teacher.teacher.module={_target_: torch.nn.Linear, in_features: 6, out_features: 5}",
        "+lightning_optim/distillation/loss@callbacks.distillation_teacher.losses.map=soft_target",
        "callbacks.distillation_teacher.weight={soft_target: 1.0, map: 0.5}",
    ]
    with initialize_config_dir(conf, version_base="1.3"):
        callback = instantiate(compose(overrides=overrides).callbacks.distillation_teacher)
    assert isinstance(callback, DistillationTeacher)
    fit(Student(), callback, max_epochs=1)
    assert isinstance(callback.teacher_module, nn.Linear)
    assert isinstance(callback.teacher, ModuleTeacher)
