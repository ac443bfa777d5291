"""The files that a user keeps are of the compressed model, and a mistake costs nothing."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
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


class Folder(Callback):
    """Looks at every step for a checkpoint to resume from."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        files = list(self.folder.glob("*.ckpt"))
        assert files
        assert all(path.exists() for path in files), "a link leads nowhere"


def test_best_starts_afresh_and_files_go_only_after_what_follows_them(case, kit, tmp_path):
    if case.callback not in ("pruning_scheduler", "qat_fake_quant") or "-rewind-" in case.label:
        return  # the others have no target; and rewinding refuses a fit that goes on from one without it

    def rising(module):
        step = module.validation_step
        module.validation_step = lambda batch, batch_idx: (
            step(batch, batch_idx), module.log("val/epoch", float(module.current_epoch))
        )  # fmt: skip
        plain = module.configure_optimizers

        def configure():
            (optimizer,), _ = plain()
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/epoch"}}

        module.configure_optimizers = configure
        return module

    def saver():
        return ModelCheckpoint(tmp_path, "{epoch}", monitor="val/epoch", save_top_k=2, save_last="link")

    kit.fit(rising(case.module()), saver(), enable_checkpointing=True, max_epochs=1)
    earlier = {path: path.read_bytes() for path in tmp_path.iterdir()}
    callback, best, stopper = case.make(), saver(), EarlyStopping("val/epoch", patience=9)
    trainer = kit.fit(
        rising(case.module(seed=9)), stopper, callback, best, Folder(tmp_path),
        enable_checkpointing=True, max_epochs=5, ckpt_path=tmp_path / "last.ckpt",
    )  # fmt: skip
    assert all(path.read_bytes() == held for path, held in earlier.items() if not path.is_symlink())
    reached = []
    for path in best.best_k_models:
        saved = torch.load(path, weights_only=True)
        own = saved["callbacks"][callback.state_key]
        reached.append(saved["epoch"])
        assert own["ranges"]["keys"] if "ranges" in own else own["reached"] == pytest.approx(0.5)
    first = min(reached)
    assert first >= 1
    assert float(best.best_model_score) == float(stopper.best_score) == first
    assert trainer.lr_scheduler_configs[0].scheduler.best == first
    assert sorted(reached) == [first, first + 1][: len(reached)]


def test_resume_is_bit_equal_beside_an_average(case, kit, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module, callback = case.module(), case.make()
    kit.fit(module, EMAWeightAveraging(decay=0.5), callback, saver, enable_checkpointing=True)
    expected = copy.deepcopy(dict(module.state_dict()))
    resumed = case.module(seed=9)
    kit.fit(resumed, EMAWeightAveraging(decay=0.5), case.make(), ckpt_path=tmp_path / "step=6.ckpt")
    kit.same(expected, dict(resumed.state_dict()))


@pytest.mark.every_leaf
def test_wrong_network_or_target_is_refused_before_anything_changes(case, kit):
    module = case.module()
    before, traces = copy.deepcopy(dict(module.state_dict())), kit.traces(module)
    setting = "targets.include=[nowhere]" if case.callback == "dropout_scheduler" else "network=nowhere"
    with pytest.raises(ValueError, match="nowhere"):
        kit.fit(module, case.make(f"callbacks.{case.callback}.{setting}"))
    kit.same(before, dict(module.state_dict()))
    assert kit.traces(module) == traces
