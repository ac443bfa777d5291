"""Every kind of decision of ``conf/lightning_optim/nas/space``: its paths are what is extracted, to the bit."""

import copy
import pickle

import pytest
import torch

from contract.conftest import cases
from nas_laws import assert_same, check_paths, outputs

SPACES = [case for case in cases() if case.slot[0] == "lightning_optim/nas/space"]


@pytest.mark.parametrize("leaf", SPACES, ids=[case.leaf for case in SPACES])
def test_every_path_is_extracted_bit_for_bit_and_the_module_stays_what_it_was(leaf):
    module, plain, x = leaf.module(), leaf.module(), (torch.randn(4, 3, 6, 6),)
    supernet = leaf.make().convert(module)
    assert [key for key in module.state_dict() if "._candidates." not in key] == list(plain.state_dict())
    assert_same(outputs(module.eval(), x), outputs(plain.eval(), x))
    assert supernet.space.num_candidates > 1
    check_paths(supernet, x, num=4)


@pytest.mark.parametrize("leaf", SPACES, ids=[case.leaf for case in SPACES])
def test_a_copy_and_a_pickle_run_the_active_path_and_are_extracted_alike(leaf):
    module, x = leaf.module(), (torch.randn(4, 3, 6, 6),)
    supernet = leaf.make().convert(module)
    last = {entry.name: 0 if entry.default else len(entry.options) - 1 for entry in supernet.decisions}
    supernet.activate(last)
    for net in (module.eval(), supernet.extract(last).eval()):
        expected = outputs(net, x)
        for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301  # our own bytes
            assert_same(outputs(copied, x), expected)
            with torch.no_grad():
                for parameter in copied.parameters():
                    parameter.zero_()
            assert_same(outputs(net, x), expected)
