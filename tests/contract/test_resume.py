"""A run that was cut short and goes on ends where an uninterrupted one does."""

import copy
import functools

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_optim.surgery.shrunk_checkpoint import MARK


@pytest.fixture(scope="session")
def saved_fits(tmp_path_factory):
    """A fit of each case that saves at every step; made once, since its files are read and never written to."""

    @functools.cache
    def fit(case, kit):
        folder = tmp_path_factory.mktemp("saved")
        saver = ModelCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
        )
        ends = ModelCheckpoint(folder / "ends", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        module, callback = case.module(), case.make()
        trainer = kit.fit(module, callback, saver, ends, enable_checkpointing=True)
        return folder, copy.deepcopy(kit.state(trainer, callback))

    return fit


@pytest.fixture
def uninterrupted(case, kit, saved_fits):
    return saved_fits(case, kit)


def resume(case, kit, folder, name, expected):
    module, callback = case.module(seed=9), case.make()
    torch.manual_seed(77)
    trainer = kit.fit(module, callback, ckpt_path=folder / name)
    kit.same(expected, kit.state(trainer, callback), name)


@pytest.mark.every_leaf
def test_resume_in_the_middle_is_bit_equal(case, kit, uninterrupted):
    folder, expected = uninterrupted
    resume(case, kit, folder, "step=3.ckpt", expected)


def test_resume_at_any_step_and_at_the_end_of_an_epoch_is_bit_equal(case, kit, uninterrupted):
    folder, expected = uninterrupted
    for name in ("step=1.ckpt", "step=4.ckpt", "ends/epoch=0.ckpt", "step=6.ckpt"):
        resume(case, kit, folder, name, expected)


def test_checkpoint_keys_are_the_users_and_every_stage_runs_from_it(case, kit, uninterrupted):
    folder, expected = uninterrupted
    path = folder / "step=8.ckpt"
    saved = torch.load(path, weights_only=True)
    weights = {key: value for key, value in saved["state_dict"].items() if key != MARK}
    own = {key: value for key, value in weights.items() if "._candidates." not in key}
    plain = case.module(seed=9)
    cut = saved["callbacks"].get(case.make().state_key, {}).get("cut", {})
    assert (MARK in saved["state_dict"]) == bool(cut)
    gone = tuple(f"net.{name}." for name, cuts in cut.items() if not all(len(kept) for _, kept, _ in cuts))
    assert own.keys() == {key for key in plain.state_dict() if not key.startswith(gone)}
    if not gone and all(own[key].shape == value.shape for key, value in plain.state_dict().items()):
        plain.load_state_dict(own, strict=True)
    module, callback = case.module(seed=9), case.make()
    trainer = kit.trainer(callback)
    scores = [
        trainer.validate(module, kit.loader(2), ckpt_path=path, weights_only=True, verbose=False)[0],
        trainer.test(module, kit.loader(2), ckpt_path=path, weights_only=True, verbose=False)[0],
    ]
    assert scores[0] == scores[1]
    answers = trainer.predict(module, kit.loader(2), ckpt_path=path, weights_only=True)
    assert [answer.isfinite().all() for answer in answers] == [True, True]
    # A search at the end of the fit has set statistics since.
    ends = saved["state_dict"] if case.callback == "nas_supernet" else expected["weights"]
    kit.same({key: ends[key] for key in weights}, dict(module.state_dict()))


def leaves_of(state):
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in leaves_of(value)]
    return [leaf for value in state for leaf in leaves_of(value)] if isinstance(state, (list, tuple)) else [state]


def test_checkpoint_holds_plain_state_and_no_row_of_the_data(case, kit, uninterrupted):
    folder, _ = uninterrupted
    saved = torch.load(folder / "step=8.ckpt", weights_only=True)["callbacks"].get(case.make().state_key, {})
    kinds = {type(leaf) for leaf in leaves_of(saved)}
    assert kinds <= {torch.Tensor, bool, int, float, str, type(None)}
    row = case.module().data(0, 0)[0].shape[1:]
    assert not [leaf for leaf in leaves_of(saved) if isinstance(leaf, torch.Tensor) and leaf.shape[1:] == row]


def test_plain_checkpoint_goes_on_under_the_callback(case, kit, tmp_path):
    plain = case.module()
    trainer = kit.fit(plain, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    module, callback = case.module(seed=9), case.make()
    if case.callback == "nas_supernet":  # candidates have no optimizer state there
        found = kit.trainer(callback).validate(
            module, kit.loader(2), ckpt_path=tmp_path / "plain.ckpt", weights_only=True, verbose=False
        )
        expected = kit.trainer().validate(plain, kit.loader(2), verbose=False)
        assert found == expected
        return
    if "-rewind-" in case.label:  # nobody remembers the step to go back to
        with pytest.raises(ValueError, match="rewind goes back to step 0"):
            kit.fit(module, callback, ckpt_path=tmp_path / "plain.ckpt")
        return
    trainer = kit.fit(module, callback, ckpt_path=tmp_path / "plain.ckpt")
    assert trainer.global_step == kit.EPOCHS * kit.BATCHES
