"""The files that a user keeps are of the compressed model, and a mistake costs nothing."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint


def test_best_and_last_files_are_of_the_compressed_model(case, kit, tmp_path):
    if case.callback not in ("pruning_scheduler", "qat_fake_quant"):
        return
    module, callback = case.module(), case.make()
    saver = ModelCheckpoint(tmp_path, monitor="val/loss", save_top_k=1, save_last=True)
    # Scores that only get worse: the first epoch would be kept, and training stopped, were they taken at their word.
    step = module.validation_step
    module.validation_step = lambda batch, batch_idx: (
        step(batch, batch_idx), module.log("val/worse", float(module.current_epoch))
    )  # fmt: skip
    worse = ModelCheckpoint(tmp_path / "worse", monitor="val/worse", save_top_k=1, save_last=True)
    stopper = EarlyStopping("val/worse", patience=1)
    trainer = kit.fit(module, callback, saver, worse, stopper, enable_checkpointing=True, max_epochs=4)
    for path in (saver.best_model_path, saver.last_model_path, worse.best_model_path, worse.last_model_path):
        saved = torch.load(path, weights_only=True)
        own = saved["callbacks"][callback.state_key]
        if case.callback == "qat_fake_quant":
            assert own["ranges"]["keys"]
        else:
            assert own["reached"] == pytest.approx(0.5)
            assert case.density(saved["state_dict"]) <= 0.75
    assert trainer.current_epoch >= 1


def test_resume_is_bit_equal_beside_an_average(case, kit, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module, callback = case.module(), case.make()
    kit.fit(module, EMAWeightAveraging(decay=0.5), callback, saver, enable_checkpointing=True)
    expected = copy.deepcopy(dict(module.state_dict()))
    resumed = case.module(seed=9)
    kit.fit(resumed, EMAWeightAveraging(decay=0.5), case.make(), ckpt_path=tmp_path / "step=6.ckpt")
    kit.same(expected, dict(resumed.state_dict()))


@pytest.mark.every_leaf
def test_wrong_network_is_refused_before_anything_changes(case, kit):
    module = case.module()
    before, traces = copy.deepcopy(dict(module.state_dict())), kit.traces(module)
    with pytest.raises(ValueError, match="nowhere"):
        kit.fit(module, case.make(f"callbacks.{case.callback}.network=nowhere"))
    kit.same(before, dict(module.state_dict()))
    assert kit.traces(module) == traces
