"""What every callback keeps, whatever the Trainer does around it."""

import copy
import pickletools
import zipfile

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

TOGETHER = {"accumulate_grad_batches": 2, "precision": "bf16-mixed", "gradient_clip_val": 0.1}
SETTINGS = {
    "plain": {},
    "together": TOGETHER,
    **{key: {key: value} for key, value in TOGETHER.items()},
}
MARKS = {"plain": pytest.mark.every_leaf, "together": []}  # what each does alone is met by each callback


def prunes(case):
    return case.callback == "pruning_scheduler"


@pytest.mark.parametrize(
    "settings",
    [pytest.param(each, id=key, marks=MARKS.get(key, pytest.mark.crossed)) for key, each in SETTINGS.items()],
)
def test_trains_under_the_trainers_settings(case, kit, settings):
    module, callback = case.module(), case.make()
    before = copy.deepcopy(module.state_dict())
    kit.fit(module, callback, **settings)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert not torch.equal(before["net.head.bias"], module.state_dict()["net.head.bias"])
    check_sparsity(case, callback, module)


def check_sparsity(case, callback, module):
    if not prunes(case):
        return
    assert callback.target_sparsity == pytest.approx(0.5)
    assert case.density(module.state_dict()) <= 0.75


@pytest.mark.parametrize("returns", ["dict", "none"])
def test_training_step_may_return_what_lightning_allows(case, kit, returns):
    module, callback = case.module(), case.make()
    module.returns = returns
    kit.fit(module, callback)
    if returns == "dict":
        reference, _ = kit.plain_fit(case)
        kit.same(dict(reference.state_dict()), dict(module.state_dict()))


def test_manual_optimization_ends_as_automatic_or_is_refused(case, kit):
    module, callback = case.module(kind=kit.ManualModule), case.make()
    if case.runs_steps_twice:
        with pytest.raises(ValueError, match=r"under manual optimization .* use (labels='soft'|automatic)"):
            kit.fit(module, callback)
        return
    kit.fit(module, callback)
    reference, _ = kit.plain_fit(case)
    kit.same(dict(reference.state_dict()), dict(module.state_dict()))


def test_compiled_network_trains_as_the_plain_one_or_is_refused(case, kit):
    torch._dynamo.reset()  # its cache is by code, and blind to hooks
    module, callback = case.module(), case.make()
    module.net = torch.compile(module.net, backend="eager")
    if case.callback in ("nas_supernet", "dropout_scheduler") or case.leaf == "jacobian":
        with pytest.raises(ValueError, match="train it uncompiled"):
            kit.fit(module, callback)
        return
    kit.fit(module, callback)
    reference, _ = kit.plain_fit(case)
    found = {key.replace("_orig_mod.", ""): value for key, value in module.state_dict().items()}
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)


def test_averaging_may_stand_before_or_after(case, kit):
    ends = []
    for order in (1, -1):
        module, callback = case.module(), case.make()
        pair = [callback, EMAWeightAveraging(decay=0.5)]
        kit.fit(module, *pair[::order])
        assert all(value.isfinite().all() for value in module.state_dict().values())
        ends.append(dict(module.state_dict()))
        check_sparsity(case, callback, module)
    kit.same(*ends)


def test_one_instance_serves_two_fits(case, kit):
    callback = case.make()
    kit.fit(case.module(), callback)
    module = case.module()
    kit.fit(module, callback)
    reference, _ = kit.plain_fit(case)
    kit.same(dict(reference.state_dict()), dict(module.state_dict()))


class Stop(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            raise RuntimeError("stopped here")


class Copy(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            self.copy = copy.deepcopy(pl_module)


def at_rest(case, kit):
    """What a module carries after a fit under the callback: nothing, but for the supernet's own paths."""
    module = case.module()
    if case.callback == "nas_supernet":
        kit.fit(module, case.make(), max_epochs=1)
    return kit.traces(module)


def test_exception_leaves_no_patch_and_no_hook(case, kit):
    module = case.module()
    with pytest.raises(RuntimeError, match="stopped here"):
        kit.fit(module, case.make(), Stop())
    expected = at_rest(case, kit)
    assert kit.traces(module) == expected
    ended, _ = kit.plain_fit(case)
    left = kit.traces(ended)  # a shrink may have taken modules out
    assert left == {name: found for name, found in expected.items() if name in left}


def test_copy_made_during_the_fit_is_independent_and_usable(case, kit):
    module, spy = case.module(), Copy()
    kit.fit(module, case.make(), spy)
    if case.callback != "nas_supernet":
        assert not any(patched for patched, _ in kit.traces(spy.copy).values())
    frozen = copy.deepcopy(dict(spy.copy.state_dict()))
    kit.fit(module, case.make(), max_epochs=1)
    kit.same(frozen, dict(spy.copy.state_dict()))
    assert spy.copy.eval()(torch.zeros(2, 3, 6, 6)).isfinite().all()


def test_two_instances_need_two_names(case, kit):
    module = case.module()
    before = copy.deepcopy(dict(module.state_dict()))
    with pytest.raises((RuntimeError, ValueError), match=r"state_key|name"):
        kit.fit(module, case.make(), case.make())
    kit.same(before, dict(module.state_dict()))
    one = case.make(f"callbacks.{case.callback}.name=one")
    other = case.make(f"callbacks.{case.callback}.name=other")
    assert one.state_key != other.state_key


class SaveWhole(Callback):
    """Saves the whole module in the middle of the fit, as it is and as a copy."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in (2, 5):
            torch.save(pl_module, self.folder / f"module-{trainer.global_step}.pt")
            torch.save(copy.deepcopy(pl_module), self.folder / f"copy-{trainer.global_step}.pt")


def test_whole_modules_can_be_loaded_without_this_package(case, kit, tmp_path):
    module, callback = case.module(), case.make()
    kit.fit(module, callback, SaveWhole(tmp_path))
    torch.save(module, tmp_path / "after.pt")
    if case.callback == "nas_supernet":
        torch.save(callback.extract(module, callback.supernet.default), tmp_path / "extracted.pt")
    files = sorted(tmp_path.iterdir())
    assert len(files) >= 5
    for path in files:
        with zipfile.ZipFile(path) as archive:
            pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        named = {arg for _, arg, _ in pickletools.genops(pickled) if str(arg).startswith("lightning_optim")}
        if path.name == "after.pt" and case.leaf == "layer":
            assert named <= {"lightning_optim.surgery.bypass Bypass"}  # in place of what was taken out
        elif case.callback != "nas_supernet" or path.name == "extracted.pt":  # a supernet is made of this package
            assert not named, path.name
        loaded = torch.load(path, weights_only=False)
        assert loaded.eval()(torch.zeros(2, 3, 6, 6)).isfinite().all()
