"""Each mistake is told in one line, ends with code 1, and leaves the disk as it was."""

import gzip

import pytest
import torch
from torch import nn

from lightning_optim.demo import ResidualNet

TINY = ("model.network.widths=[4,8]", "model.memory_format=contiguous", "data.batch_size=32", "latency_seconds=0.1")
PRUNE = "recipe.stages.prune.callbacks.pruning_scheduler"
TEACHER = "recipe.stages.distil.callbacks.distillation_teacher.teacher"
CHECKPOINT = f"lightning_optim/distillation/teacher@{TEACHER}=checkpoint"


def refused(answer, before, after, *fragments):
    assert answer.code == 1, answer
    (line,) = answer.err.strip().splitlines()
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line
    assert "Traceback" not in answer.out
    assert after == before


@pytest.fixture
def refuses(call, contents):
    def check(words, *fragments):
        before = contents()
        refused(call(*words), before, contents(), *fragments)

    return check


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["compres"], ["'compres'", "'compress'"]),
        (["run=nowhere"], ["nowhere is no run", "name a folder"]),
        (["recipe.order=[base,qat,prune,export]"], ["'prune' cannot come after 'qat'", "prune first"]),
        (["recipe.order=[export]"], ["'export' cannot come first"]),
        (["recipe.order=[base,export,qat]"], ["cannot come after 'export'"]),
        (["recipe.order=[]"], ["at least one stage"]),
        (["recipe.order=[base,polish]"], ["'polish'", "'distil'"]),
        (["recipe.order=[distil]"], ["uses stage 'base'", "does not come before it"]),
        ([f"{PRUNE}.schedule.end=1.5", *TINY], ["[0, 1)", "1.5"]),
        ([f"{PRUNE}.schedule.end=1.0", *TINY], ["[0, 1)", "1.0"]),
        ([f"{PRUNE}.targets.include=[net.layer9.*]", *TINY], ["net.layer9.*"]),
        ([f"{PRUNE}.targets.types=[Conv9d]", *TINY], ["Conv9d"]),
        (["model._target_=nowhere.Module"], ["No module named 'nowhere'"]),
        (["model=custom", *TINY[2:]], ["model._target_"]),
        (["+recipe.stages.prune.callbacks.broken=3", *TINY], ["broken", "_target_"]),
        (["seed=abc"], ["seed", "'abc'"]),
        (["latency_seconds=0"], ["latency_seconds must be above 0"]),
        (["recipe.order=base"], ["recipe.order", "'base'"]),
        (["recipe.fallbacks=float"], ["recipe.fallbacks must be 'named', 'refused', or a sequence", "got 'float'"]),
        (["recipe.stages.base.trainer.max_epochs=0", *TINY], ["'base' would train nothing"]),
        (["model.lr=-1"], ["lr must be above 0"]),
        (["network=backbone", *TINY], ["backbone"]),
        (["metrics.test=test/acc", *TINY], ["test/acc", "test/accuracy"]),
        (["+recipe.stages.base.settings.learning_rate=1", *TINY], ["learning_rate", "Classifier"]),
        (["data=fashion_mnist", "data.folder=nowhere"], ["nowhere", "data.folder", "data.download=true"]),
        ([CHECKPOINT, f"{TEACHER}.path=nowhere.ckpt", *TINY], ["nowhere.ckpt", "does not exist"]),
        ([CHECKPOINT], [f"stage 'distil' needs a value for {TEACHER}.path, got none"]),
        ([f"{TEACHER}.module=${{artefact:qat}}"], ["'distil' uses stage 'qat'", "does not come before it"]),
        (["recipe.order=[finetune,export]"], ["'finetune' cannot come first", "use a train stage"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_words_are_refused(refuses, words, fragments):
    refuses(words, *fragments)


def truncated(path):
    torch.save(ResidualNet(widths=(4, 8)).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])


def pickle_with_code(path):
    torch.save(ResidualNet(widths=(4, 8)), path)


def of_another_model(path):
    torch.save(nn.Linear(3, 2).state_dict(), path)


def of_fewer_classes(path):
    torch.save(ResidualNet(widths=(4, 8), num_classes=7).state_dict(), path)


@pytest.mark.parametrize(
    ("write", "fragment"),
    [
        (truncated, "truncated"),
        (pickle_with_code, "could run code"),
        (of_another_model, "another model"),
        (of_fewer_classes, "another model"),
    ],
)
def test_a_bad_teacher_file_is_refused_before_the_base_is_trained(refuses, tmp_path, write, fragment):
    write(tmp_path / "teacher.ckpt")
    refuses([CHECKPOINT, f"{TEACHER}.path=teacher.ckpt", *TINY], "teacher.ckpt", fragment)


def test_a_teacher_of_fewer_classes_is_refused_with_both_numbers(refuses, tmp_path):
    of_fewer_classes(tmp_path / "teacher.ckpt")
    net = "{_target_: lightning_optim.demo.model.residual.ResidualNet, widths: [4, 8], num_classes: 7}"
    refuses([CHECKPOINT, f"{TEACHER}.path=teacher.ckpt", f"+{TEACHER}.architecture={net}", *TINY], "7", "10")


MODULE = """
import lightning
import torch
from torch import nn
from torch.nn import functional as F


class Idle(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.used, self.idle, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, image):
        return self.head(F.relu(self.used(image)).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""


def test_a_tap_that_never_fires_is_named(refuses, tmp_path, monkeypatch):
    (tmp_path / "idle_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    criterion = "lightning_optim/pruning/criterion@recipe.stages.prune.callbacks.pruning_scheduler.criterion"
    words = ["model._target_=idle_module.Idle", f"{criterion}=mean_activation", f"{PRUNE}.targets.include=[idle]"]
    refuses([*words, "network=''"], "'idle'", "forward pass")


def test_a_run_that_fails_does_not_end_the_sweep(call, tmp_path):
    answer = call("--multirun", "seed=abc,1", "recipe.order=[base]", "recipe.stages.base.trainer.max_epochs=1", *TINY)
    assert answer.code == 1
    assert "seed must be a whole number" in answer.err
    assert "error: run 0 failed, see above" in answer.err
    assert "Traceback" not in answer.err
    assert [path.parent.name for path in tmp_path.rglob("report.json")] == ["1"]


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", gzip.compress(b"\0\0\x08\x03")[:-4], gzip.compress(b"no idx")],
    ids=["plain", "cut", "no idx"],
)
def test_corrupt_data_is_refused(refuses, tmp_path, content):
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(content)
    refuses(["data=fashion_mnist", f"data.folder={tmp_path}", *TINY], "ubyte.gz")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "no config.yaml"),
        ("learning_rate: 1\n", "'recipe'"),
        ("[1, 2]\n", "no run"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_a_folder_that_is_no_run_does_not_go_on(refuses, tmp_path, content, fragment):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.onnx").write_bytes(b"precious")
    if content is not None:
        (tmp_path / "folder" / "config.yaml").write_text(content)
    refuses(["run=folder"], "folder", fragment)


def test_a_run_goes_on_as_it_was_configured_or_not_at_all(refuses):
    refuses(["run=folder", "seed=1"], "'seed=1'", "as it was configured")


@pytest.mark.parametrize("name", ["config.yaml", "model.onnx", "report.json"])
def test_nothing_is_written_over(refuses, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_text("precious: true\n")
    refuses(["hydra.run.dir=folder", *TINY], "folder", "choose another folder")


@pytest.mark.parametrize(
    ("word", "fragments"),
    [("data=digit", ["digits", "fashion_mnist"]), ("model=resnet", ["residual", "vit"]), ("sed=1", ["sed"])],
)
def test_a_typo_lists_what_there_is(call, contents, word, fragments):
    answer = call(word)
    assert answer.code == 1
    assert "Traceback" not in answer.err
    for fragment in fragments:
        assert fragment in answer.err
    assert contents() == {}
