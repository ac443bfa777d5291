import json
import sys
from pathlib import Path

import pytest
import torch

from lightning_optim.distillation import HuggingFace
from lightning_optim.errors import ArtefactError, ExportError
from lightning_optim.surgery.tap import ModuleCall

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bert(transformers):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, num_labels=3, **sizes))


@pytest.fixture
def folder(bert, tmp_path):
    bert.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_folder_answers_as_the_model_that_was_saved(bert, folder):
    source = HuggingFace(model=folder, task=CLASSIFIER)
    teacher = source.freeze(source.load(lambda: None))
    teacher.place(torch.device("cpu"), torch.float32)
    ids = torch.randint(0, 20, (4, 6))
    answer = teacher(ModuleCall((), {"input_ids": ids}, None)).call.output
    with torch.no_grad():
        assert torch.equal(answer.logits, bert.eval()(input_ids=ids).logits)


def test_head_that_was_not_saved_is_refused_and_not_drawn_at_random(folder):
    with pytest.raises(ArtefactError, match=r"no AutoModelForQuestionAnswering: 2 .* \(first 'qa_outputs.bias'\)"):
        HuggingFace(model=folder, task="AutoModelForQuestionAnswering").load(lambda: None)
    assert type(HuggingFace(model=str(folder)).load(lambda: None)).__name__ == "BertModel"


def test_pickled_weights_are_refused(bert, folder):
    (folder / "model.safetensors").unlink()
    torch.save(bert.state_dict(), folder / "pytorch_model.bin")
    assert_one_line(HuggingFace(model=folder), "weights are read from safetensors alone: save it again")


def test_code_of_a_model_is_refused_and_not_run(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("open('exploded', 'w')\nclass Config: pass\nclass Model: pass\n")
    assert_one_line(HuggingFace(model=folder), "code of its own, which is never run")
    assert not Path("exploded").exists()


def test_what_is_not_there_is_refused(transformers, folder, tmp_path):
    assert_one_line(HuggingFace(model="no/such-model"), "or download it by local_files_only=False")
    (tmp_path / "empty").mkdir()
    assert_one_line(HuggingFace(model=tmp_path / "empty"), "cannot be loaded as AutoModel")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert_one_line(HuggingFace(model=folder), "cannot be loaded as AutoModel: .*deserializing")
    assert_one_line(HuggingFace(model=folder, task="AutoModelForNothing"), "has no class 'AutoModelForNothing'")


def test_task_that_is_no_class_of_the_kind_is_refused():
    with pytest.raises(ValueError, match="begins with 'AutoModel', got 'text-classification'"):
        HuggingFace(model="folder", task="text-classification")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ExportError, match=r"needs transformers: pip install 'lightning-optim\[huggingface\]'"):
        HuggingFace(model="folder").load(lambda: None)


def assert_one_line(source, message):
    with pytest.raises(ArtefactError, match=message) as caught:
        source.load(lambda: None)
    assert "\n" not in str(caught.value)
