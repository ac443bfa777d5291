import copy
import io
import pickle
import pickletools

import torch
from torch import nn

from lightning_optim.surgery.patch import Patches
from lightning_optim.surgery.tap import Taps
from support import same


def names_in(data):
    return [str(arg) for _, arg, _ in pickletools.genops(data) if isinstance(arg, str)]


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def patched_and_tapped():
    layer, patches, taps = nn.Linear(2, 2), Patches(), Taps()
    patches.wrap(layer, "forward", lambda original, x: original(x) + 1)
    patches.wrap(layer, "forward", lambda original, x: original(x) * 2)
    taps.attach({"layer": layer})
    return layer, patches, taps


def test_a_pickle_of_a_patched_module_names_nothing_of_this_package():
    layer, _, _ = patched_and_tapped()
    data = pickle.dumps(layer)
    assert not [name for name in names_in(data) if "lightning_optim" in name]
    loaded = through_a_file(layer)
    twin = copy.deepcopy(layer)
    assert not [name for name in names_in(pickle.dumps(twin)) if "lightning_optim" in name]
    for other in (loaded, twin):
        assert other.forward.__self__ is other
        assert other.forward.__func__ is nn.Linear.forward
        assert same(dict(other.state_dict()), dict(layer.state_dict()))


def test_a_copy_has_hooks_that_do_nothing():
    layer, patches, taps = patched_and_tapped()
    twin = through_a_file(copy.deepcopy(layer))
    taps.open()
    x = layer.weight.detach()
    assert twin(x).equal(nn.functional.linear(x, layer.weight, layer.bias))
    layer(x)
    assert len(taps.take()["layer"]) == 1
    patches.undo()
    taps.remove()
    assert layer(x).equal(twin(x))


def test_a_copy_of_patches_has_set_none():
    layer, patches, _ = patched_and_tapped()
    copy.deepcopy(patches).undo()
    through_a_file(patches).undo()
    assert "forward" in vars(layer)


def own_forward(x):
    return x + 5


def test_a_method_that_the_user_has_set_on_the_instance_stays():
    layer, patches = nn.Linear(2, 2), Patches()
    layer.forward = own_forward
    patches.wrap(layer, "forward", lambda original, x: original(x) * 2)
    patches.wrap(layer, "forward", lambda original, x: original(x) * 2)
    for twin in (copy.deepcopy(layer), through_a_file(layer)):
        assert twin.forward is own_forward


def test_innermost_patch_lies_below_all_others_and_goes_alone():
    class Counter:
        def count(self):
            return ["own"]

    counter, outer, inner, later = Counter(), Patches(), Patches(), Patches()
    outer.wrap(counter, "count", lambda original: [*original(), "outer"])
    inner.wrap_innermost(counter, "count", lambda original: [*original(), "inner"])
    later.wrap(counter, "count", lambda original: [*original(), "later"])
    assert counter.count() == ["own", "inner", "outer", "later"]
    outer.undo()
    assert counter.count() == ["own", "inner", "later"]
    inner.undo()
    assert counter.count() == ["own", "later"]
    inner.wrap_innermost(counter, "count", lambda original: [*original(), "inner"])
    later.undo()
    assert counter.count() == ["own", "inner"]
    inner.undo()
    assert "count" not in vars(counter)
