"""What every law runs over: each leaf of ``conf/`` in its callback, and a module small enough to train in no time.

By default each leaf fits, resumes and is refused once; every law runs over one leaf a family and over those that say
``# law: all``, and over all of them with ``-m slow``.
"""

import copy
import functools
import importlib.util
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from lightning.pytorch import LightningModule, Trainer
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import lightning_optim.conf
from lightning_optim import NASSupernet
from lightning_optim.cli.build import build
from lightning_optim.cost import MACs, Prices, Subject
from lightning_optim.graph import capture_network, couple
from lightning_optim.nas import LearnedSampler
from lightning_optim.pruning import Sensitivity, SensitivityCurve, targeted_groups
from support import write_linear_onnx

CONF = Path(lightning_optim.conf.__path__[0])
EPOCHS, BATCHES = 2, 4
# Families that no callback has by default, and where an entry of them goes.
LISTS = {
    "lightning_optim/nas/space": "nas_supernet.space.entry",
    "lightning_optim/nas/zero_cost": "nas_supernet.selection.screening.score",
    "lightning_optim/distillation/input_map": "distillation_teacher.teacher.input_map",
}
# Families that an option of another family pulls in: where an entry goes, and what chooses that option.
INNER = {"lightning_optim/cost": "pruning_scheduler.allocation.cost"}
_BUDGET = "lightning_optim/pruning/allocation@callbacks.pruning_scheduler.allocation=budget"
# Families that callbacks do not take: of the command line, and what ``QATFakeQuant.calibrate`` is given.
ELSEWHERE = {"lightning_optim", "lightning_optim/data", "lightning_optim/model", "lightning_optim/recipe"}
ELSEWHERE |= {
    "lightning_optim/nas/network",
    "lightning_optim/task",
    "lightning_optim/export/runtime",
    "lightning_optim/quantization/post_training",
}

# Options that need a package which the tests don't install.
PACKAGES = {"hugging_face": "transformers"}

_LINEAR_TEACHER = (
    "{_target_: torch.nn.Sequential, _args_: [{_target_: torch.nn.Flatten},"
    "{_target_: torch.nn.Linear, in_features: 108, out_features: 3}]}"
)
_TWO_TEACHERS = (
    f"{{one: {{_target_: lightning_optim.distillation.ModuleTeacher, module: {_LINEAR_TEACHER}}},"
    "other: {_target_: lightning_optim.distillation.EMA, decay: 0.5}}"
)
_ENTRY = "+lightning_optim/nas/space@callbacks.nas_supernet.space.entry"
_SCREENING = "+callbacks.nas_supernet.selection.screening._target_=lightning_optim.nas.Screening"
# Samplers that train several paths in one step.
SEVERAL_PATHS = ("fair_nas", "sandwich")
# Samplers with architecture parameters: they choose among operations, and hold half of the samples out.
LEARNED = ("darts", "gdas", "pc_darts", "proxyless_nas")
# What a callback or a leaf cannot do without, or what makes it small.
VALUES = {
    "pruning_scheduler": ["callbacks.pruning_scheduler.window.every=0.25"],
    "nas_supernet": ["callbacks.nas_supernet.selection={evaluations: 3, recalibration_batches: 1}"],
    "dropout_scheduler": ["callbacks.dropout_scheduler.targets.include=[net.mix]"],
    "present_dropout": ["callbacks.dropout_scheduler.targets.include=['*']"],
    "elastic_width": ["callbacks.nas_supernet.space.entry.targets.exclude=[net.head]"],
    "elastic_depth": ["callbacks.nas_supernet.space.entry.targets.include=[net.stem]"],
    "elastic_embedding": ["callbacks.nas_supernet.space.entry.targets.include=[net.stem.0]"],
    "elastic_expansion": [
        "callbacks.nas_supernet.space.entry.targets.include=[net.more]",
        "callbacks.nas_supernet.space.entry.ratios=[0.25]",
    ],
    "elastic_kernel": ["callbacks.nas_supernet.space.entry.sizes=[1]"],
    "input_choice": [
        "callbacks.nas_supernet.space.entry.targets.include=[net.top]",
        "callbacks.nas_supernet.space.entry.sources=[net.stem,net.mix]",
    ],
    "elastic_resolution": ["callbacks.nas_supernet.space.entry.sizes=[4,8]"],
    **{score: [_SCREENING] for score in ("synflow", "naswot", "zen_score")},
    "operation_choice": ["callbacks.nas_supernet.space.entry.targets.include=[net.mix]"],
    "checkpoint": ["callbacks.distillation_teacher.teacher.path={folder}/teacher.ckpt"],
    "onnx_file": ["callbacks.distillation_teacher.teacher.path={folder}/teacher.onnx"],
    "resize": ["callbacks.distillation_teacher.teacher.input_map.size=4"],
    "from_batch": [
        "callbacks.distillation_teacher.teacher.path={folder}/embedding.ckpt",
        "callbacks.distillation_teacher.teacher.architecture="
        "{_target_: torch.nn.Embedding, num_embeddings: 3, embedding_dim: 3}",
        "callbacks.distillation_teacher.teacher.input_map.keys=[1]",
    ],
    "hugging_face": [
        "callbacks.distillation_teacher.teacher.model={folder}/hugging_face",
        "callbacks.distillation_teacher.teacher.task=AutoModelForImageClassification",
        "callbacks.distillation_teacher.losses.soft_target.teacher_output=logits",
    ],
    "exported": ["callbacks.distillation_teacher.teacher.program={_target_: support.exported_classifier}"],
    "safetensors": ["callbacks.distillation_teacher.teacher.path={folder}/teacher.safetensors"],
    "attention_transfer": [
        "callbacks.{package}.student=net.attend",
        "callbacks.distillation_teacher.teacher.path={folder}/attentive.ckpt",
    ],
    "answer_cache": ["callbacks.distillation_teacher.cache.folder={folder}/answers"],
    "hint": ["callbacks.{package}.student=net.stem", "callbacks.{package}.projection=always"],
    "attention_map": ["callbacks.{package}.student=net.stem"],
    "channel_wise": ["callbacks.{package}.student=net.stem"],
    "crd": ["callbacks.{package}.student=net.stem"],
    "pkt": ["callbacks.{package}.student=net.stem"],
    "rkd": ["callbacks.{package}.student=net.stem"],
    "similarity_preserving": ["callbacks.{package}.student=net.stem"],
    "vid": ["callbacks.{package}.student=net.stem"],
    "minilm_relations": ["callbacks.{package}.student=net.stem", "callbacks.{package}.relation_heads=2"],
    "latency": ["callbacks.{package}.table={folder}/latency.json"],
    "by_sensitivity": ["callbacks.pruning_scheduler.allocation.table={folder}/analyze.json"],
    "budget": ["lightning_optim/pruning/structure@callbacks.pruning_scheduler.structure=channel"],
    "module": [f"callbacks.distillation_teacher.teacher.module={_LINEAR_TEACHER}"],
    "peer": [f"callbacks.distillation_teacher.teacher.module={_LINEAR_TEACHER}"],
    "several": [f"callbacks.distillation_teacher.teacher.teachers={_TWO_TEACHERS}"],
    "metric_drop": ["callbacks.pruning_scheduler.until.max_drop=1.0"],  # judged, and always good
    "label_smoothing": ["callbacks.batch_mixer.labels=soft", "callbacks.batch_mixer.num_classes=3"],
    "batch_norm_scale": [
        "lightning_optim/pruning/structure@callbacks.pruning_scheduler.structure=channel",
        "callbacks.pruning_scheduler.targets.include=[net.stem.*,net.mix.*]",
    ],
    "power_of_two": ["callbacks.qat_fake_quant.activation_quantizer.granularity=tensor"],
    "additive_power_of_two": ["callbacks.qat_fake_quant.activation_quantizer.granularity=tensor"],
    "symmetric": ["callbacks.qat_fake_quant.activation_quantizer.granularity=tensor"],
    "magnitude": [],
}


class Net(nn.Module):
    """Convolutions, batch norms, a residual sum, pooling and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.top = nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 3)

    def features(self, x):
        x = self.stem(x)
        x = F.relu(x + self.mix(x))
        return F.relu(self.top(x))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Attend(nn.Module):
    """Heads attend to one another's positions."""

    def forward(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value)


class AttentiveNet(Net):
    """The same, whose positions attend to one another before they are pooled."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.out, self.attend = nn.Linear(12, 12), Attend()

    def forward(self, x):
        tokens = self.features(x).flatten(2).transpose(1, 2)
        heads = [part(tokens).unflatten(-1, (-1, 3)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        mixed = self.attend(*heads).transpose(1, 2).flatten(2)
        return self.head((tokens + self.out(mixed)).mean(1))


class DeepNet(Net):
    """The same with a second residual sum."""

    def __init__(self):
        super().__init__()
        self.more = nn.Sequential(nn.Conv2d(12, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 1))

    def features(self, x):
        x = super().features(x)
        return x + self.more(x)


class DroppingNet(Net):
    """The same with dropout of its own."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def features(self, x):
        return self.drop(super().features(x))


class SignedNet(Net):
    """The same without a ReLU, after which activations have a single sign."""

    def __init__(self):
        super().__init__()
        self.stem[2] = nn.Identity()

    def features(self, x):
        x = self.stem(x)
        return self.top(x + self.mix(x))


# Leaves for which a sample must be the same in every epoch.
REPEATING = {"answer_cache"}
# Leaves that need other networks, and the layers that pruning takes from.
NETWORKS = {"attention_transfer": AttentiveNet, "head": AttentiveNet, "layer": DeepNet, "binary_activation": SignedNet}
NETWORKS |= {"present_dropout": DroppingNet, "elastic_heads": AttentiveNet, "elastic_expansion": DeepNet}
PRUNED = {"head": ("net.query", "net.key", "net.value"), "layer": ("net.mix.0", "net.more.0", "net.more.2")}


class Module(LightningModule):
    """A classifier whose data are a function of stage, rank, epoch and batch, so that a resumed run meets the same."""

    returns = "tensor"
    is_repeating = False

    def __init__(self, seed=0, network=Net):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = network()
        self.example_input_array = torch.zeros(2, 3, 6, 6)

    def forward(self, x):
        return self.net(x)

    def data(self, stage, batch_idx):
        changes = stage == 0 and not self.is_repeating
        seed = 1000 * stage + 100 * self.global_rank + 10 * self.current_epoch * changes + batch_idx
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(6, 3, 6, 6, generator=generator)
        return x, x.flatten(1)[:, :3].argmax(1)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """In training a batch is the data of its number; elsewhere steps make their own."""
        if not (self.trainer.training and isinstance(batch, (tuple, list))):
            return batch
        return self.data(0, self.trainer.fit_loop.epoch_loop.batch_idx + 1)

    def training_step(self, batch, batch_idx):
        if self.returns == "none" and batch_idx == 1:
            return None
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        return {"loss": loss, "extra": y} if self.returns == "dict" else loss

    def validation_step(self, batch, batch_idx):
        x, y = self.data(1, batch_idx)
        logits = self(x)
        self.log("val/accuracy", (logits.argmax(1) == y).float().mean(), sync_dist=True)
        self.log("val/loss", F.cross_entropy(logits, y), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return self(self.data(1, batch_idx)[0])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)]


class ManualModule(Module):
    def __init__(self, seed=0, network=Net):
        super().__init__(seed, network)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@dataclass(frozen=True)
class Case:
    """One callback with the options that make the case."""

    callback: str
    overrides: tuple[str, ...]
    label: str
    folder: Path = Path()
    slot: tuple[str, str | None] = ("", "")  # the family that the option is of, and that family's default
    text: str = ""  # of the option's file

    def make(self, *extra: str):
        """Build a fresh callback; seeded, so that modules inside it are the same each time."""
        overrides = [f"+callbacks={self.callback}", *self.overrides, *extra]
        node = composed(*(text.replace("{folder}", str(self.folder)) for text in overrides))
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return build(node[self.callback])

    @property
    def leaf(self):
        return self.label.rsplit("-", 1)[-1]

    @property
    def runs_steps_twice(self):
        """Whether the training step runs more than once for one batch, which manual optimization rules out."""
        mixes = self.callback == "batch_mixer" and self.leaf != "label_smoothing"
        return mixes or self.leaf in ("peer", *SEVERAL_PATHS, *LEARNED)

    @property
    def place(self):
        """The student's module that a loss looks at; empty if there is none."""
        return next((text.split("=")[1] for text in self.overrides if ".student=" in text), "")

    def module(self, seed=0, kind=Module):
        module = kind(seed, NETWORKS.get(self.leaf, Net))
        module.is_repeating = self.leaf in REPEATING
        return module

    def density(self, weights):
        """Weights that are left of those that pruning takes from, given a state dict."""
        names = [f"{name}.weight" for name in PRUNED.get(self.leaf, ("net.stem.0", "net.mix.0", "net.top"))]
        plain = self.module().state_dict()
        return sum(int(weights[n].count_nonzero()) for n in names if n in weights) / sum(
            plain[n].numel() for n in names
        )


@functools.cache
def composed(*overrides: str):
    """The callbacks that a command line describes; read once, since that takes as long as a fit."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[*overrides]).callbacks


def slots() -> dict[str, list[tuple[str, str, str]]]:
    """Each family, and where callbacks take it: ``(callback, package, default)``."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for path in sorted((CONF / "callbacks").glob("*.yaml")):
        for entry in OmegaConf.load(path).defaults:
            if entry != "_self_":
                ((key, default),) = entry.items()
                group, package = key.lstrip("/").split("@")
                found.setdefault(group, []).append((path.stem, package, default))
    for group, package in {**LISTS, **INNER}.items():
        found.setdefault(group, []).append((package.split(".")[0], package, ""))
    return found


def leaves() -> list[Path]:
    """Every file of ``conf/`` that describes one object."""
    return sorted(
        path for path in CONF.rglob("*.yaml") if "_target_" in OmegaConf.load(path) or path.parent.name == "callbacks"
    )


def cases() -> list[Case]:
    """Each callback as it comes, then with each option of each of its families that needs no absent package."""
    found, objects = [], leaves()
    for path in sorted((CONF / "callbacks").glob("*.yaml")):
        found.append(_case(path.stem, "", "", "default"))
    for group, places in slots().items():
        for callback, package, default in places:
            found_here = [leaf for leaf in objects if leaf.parent == CONF / group and leaf.stem != default]
            options = sorted(leaf.stem for leaf in found_here if fits(leaf, package) and is_installed(leaf))
            found += [_case(callback, group, package, option, default) for option in options]
    return found


def is_installed(leaf: Path) -> bool:
    """Whether the package of an extra of its own is there that an option needs."""
    return leaf.stem not in PACKAGES or importlib.util.find_spec(PACKAGES[leaf.stem]) is not None


def fits(leaf: Path, package: str) -> bool:
    """Whether an option may stand there: some quantizers are for weights alone, some for activations."""
    serves = getattr(get_object(OmegaConf.load(leaf)["_target_"]), "serves", None)
    return serves is None or any(operand.value in package for operand in serves)


def _case(callback: str, group: str, package: str, option: str, default: str | None = "") -> Case:
    overrides, chosen = [], {option}
    if group:
        if INNER.get(group) == package:
            overrides.append(_BUDGET)
            chosen.add("budget")
        sign = "+" if group in LISTS else ""
        overrides.append(f"{sign}{group}@callbacks.{package}={option}")
    if callback == "nas_supernet" and group != "lightning_optim/nas/space":
        entry = "operation_choice" if option in LEARNED else "elastic_width"
        overrides.append(f"{_ENTRY}={entry}")
        chosen.add(entry)
    if (callback, option) == ("nas_supernet", "latency"):
        overrides.append("callbacks.nas_supernet.search_at=call")  # no two measurements, and so no two picks, are alike
    if callback == "distillation_teacher" and not group.endswith("teacher"):
        chosen.add("checkpoint")
    for key in (callback, *sorted(chosen - {option}), option):  # an option's own values have the last word
        overrides += [text.replace("{package}", package) for text in VALUES.get(key, [])]
    slot = package.split(".", 1)[1] if package else ""
    label = "-".join(filter(None, (callback, slot, option)))
    text = (CONF / group / f"{option}.yaml").read_text() if group else ""
    return Case(callback, tuple(overrides), label, slot=(group, default), text=text)


def stands_for_its_family(case: Case) -> bool:
    """Whether every law runs over a case by default: each callback as it comes, and one option of each further family.

    A leaf whose mechanism is its own says ``# law: all``.
    """
    if case.label.endswith("-default") or "# law: all" in case.text:
        return True
    return case.label in first_options()


@functools.cache
def first_options() -> frozenset[str]:
    """The first option of each family that no callback has by default."""
    found = {group: case for case in reversed(cases()) for group, default in [case.slot] if group and not default}
    return frozenset(case.label for case in found.values())


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        found = cases()
        metafunc.parametrize("case", found, ids=[case.label for case in found], indirect=True)


@pytest.hookimpl(tryfirst=True)  # before what is slow is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave a law over most leaves to ``-m slow``, unless it is marked to run over every leaf.

    What is ``crossed`` meets the leaves in other pairs of settings, and runs over each callback as it comes.
    """
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        if isinstance(case, Case) and not runs_by_default(item, case):
            item.add_marker(pytest.mark.slow)


def runs_by_default(item: pytest.Item, case: Case) -> bool:
    if item.get_closest_marker("every_leaf"):
        return True
    return stands_for_its_family(case) and not (item.get_closest_marker("crossed") and case.leaf != "default")


def write_teachers(folder: Path) -> None:
    teacher = Module(seed=5)
    torch.save({"state_dict": teacher.state_dict()}, folder / "teacher.ckpt")
    torch.save({"state_dict": Module(5, AttentiveNet).state_dict()}, folder / "attentive.ckpt")
    save_file(teacher.net.state_dict(), folder / "teacher.safetensors")
    if importlib.util.find_spec("transformers"):
        write_hugging_face(folder / "hugging_face")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        torch.save(nn.Embedding(3, 3).state_dict(), folder / "embedding.ckpt")
        write_linear_onnx(folder / "teacher.onnx", nn.Linear(108, 3))


def write_hugging_face(folder: Path) -> None:
    import transformers

    sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "num_labels": 3}
    transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).save_pretrained(folder)


def write_latency_table(folder: Path) -> None:
    """Times in proportion to multiply-accumulates: measured ones are no two times the same."""
    network, batch = Net(), torch.zeros(2, 3, 6, 6)
    coupling = couple(capture_network(network, (batch,)))
    weights = {name: weight for name, weight in network.named_parameters() if weight.dim() > 1}
    prices = MACs().prices(Subject(network, coupling, targeted_groups(coupling, weights), (batch,)))
    seconds = Prices("seconds", prices.pools, prices.terms)
    (folder / "latency.json").write_text(json.dumps(seconds.state_dict()))


def write_sensitivity(folder: Path) -> None:
    weights = [(name, weight) for name, weight in Net().named_parameters() if weight.dim() > 1]
    curves = [
        SensitivityCurve(pool=name, size=weight.numel(), values=(0.9, 0.7 - 0.1 * place))
        for place, (name, weight) in enumerate(weights)
    ]
    table = Sensitivity(
        metric="val/accuracy", mode="max", base=0.9, sparsities=(0.3, 0.6), layers=tuple(curves), groups=()
    )
    (folder / "analyze.json").write_text(json.dumps({"sensitivity": table.to_dict()}))


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    write_teachers(folder)
    write_latency_table(folder)
    write_sensitivity(folder)
    return folder


@pytest.fixture
def case(request, teachers):
    given = request.param
    return Case(given.callback, given.overrides, given.label, teachers)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def loader(batches=BATCHES):
    """Batches carry no data: the module puts its own in their place."""
    return DataLoader(torch.arange(batches), batch_size=1, collate_fn=with_labels)


def holds_out_half(callback):
    """Whether a callback takes half of the training samples for itself."""
    return isinstance(callback, NASSupernet) and isinstance(callback.sampler, LearnedSampler)


def with_labels(numbers):
    return torch.tensor(numbers), torch.arange(6) % 3


def make_trainer(*callbacks, **settings):
    plain = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    plain |= {"max_epochs": EPOCHS, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    return Trainer(**plain | {"callbacks": list(callbacks)} | settings)


@functools.cache
def plain_fit(case: Case):
    """A fit of a case and nothing else, for laws to compare with: made once, and changed by none of them."""
    module, callback = case.module(), case.make()
    trainer = Kit.fit(module, callback)
    return module, copy.deepcopy(Kit.state(trainer, callback))


class Kit:
    """The parts of this file that laws need, since test files do not import each other."""

    Module, ManualModule, Net = Module, ManualModule, Net
    CONF, EPOCHS, BATCHES, ELSEWHERE = CONF, EPOCHS, BATCHES, ELSEWHERE
    trainer = staticmethod(make_trainer)
    loader = staticmethod(loader)
    with_labels = staticmethod(with_labels)
    leaves = staticmethod(leaves)
    slots = staticmethod(slots)
    cases = staticmethod(cases)
    plain_fit = staticmethod(plain_fit)

    @staticmethod
    def fit(module, *callbacks, ckpt_path=None, **settings):
        trainer = make_trainer(*callbacks, **settings)
        batches = BATCHES * (2 if any(holds_out_half(each) for each in callbacks) else 1)
        trainer.fit(module, loader(batches), loader(2), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return trainer

    @staticmethod
    def same(left, right, where=""):
        """Assert that two trees of state are equal bit for bit."""
        if isinstance(left, torch.Tensor):
            assert isinstance(right, torch.Tensor), where
            assert (left.shape, left.dtype) == (right.shape, right.dtype), where
            assert torch.equal(
                left.nan_to_num() if left.is_floating_point() else left,
                right.nan_to_num() if right.is_floating_point() else right,
            ), where
        elif isinstance(left, dict):
            assert left.keys() == right.keys(), where
            for key in left:
                Kit.same(left[key], right[key], f"{where}/{key}")
        elif isinstance(left, (list, tuple)):
            assert len(left) == len(right), where
            for index, (one, other) in enumerate(zip(left, right, strict=True)):
                Kit.same(one, other, f"{where}/{index}")
        else:
            assert left == right, where

    @staticmethod
    def state(trainer, callback):
        """Weights, optimizers and the callback's own state."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        own = {key: checkpoint["callbacks"].get(key) for key in [callback.state_key]}
        return {"weights": checkpoint["state_dict"], "optimizers": checkpoint["optimizer_states"], "own": own}

    @staticmethod
    def is_patch(owner, key, value):
        """Whether an attribute stands in for a method; the bound method of the class does not."""
        if not callable(value) or not hasattr(type(owner), key):
            return False
        return getattr(value, "__func__", None) is not getattr(type(owner), key) or value.__self__ is not owner

    @staticmethod
    def traces(module):
        """Patches and hooks on any submodule."""
        found = {}
        for name, part in module.named_modules():
            patched = sorted(key for key, value in vars(part).items() if Kit.is_patch(part, key, value))
            hooks = sum(
                len(value) for key, value in vars(part).items() if key.endswith("_hooks") and isinstance(value, dict)
            )
            found[name] = (patched, hooks)
        return found


@pytest.fixture(scope="session")
def kit():
    return Kit
