import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_optim.surgery.parts import PartsNetwork, PartsPlan, StepRecorder, plan_parts


def net():
    torch.manual_seed(0)
    module = nn.Module()
    module.encoder, module.act = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), nn.ReLU()
    module.decoder, module.loss = nn.Linear(3, 4), nn.MSELoss()
    return module


def planned(module, step):
    with StepRecorder(module, reads=True).recording() as recorder:
        out = step(module)
    return *plan_parts(module, recorder), out


x = torch.ones(2, 4)


def test_an_output_that_parts_alone_read_leads_on_through_parts_without_parameters():
    module = net()
    plan, inputs, out = planned(module, lambda m: m.decoder(m.act(m.encoder(x))))
    assert [part.name for part in plan.parts] == ["encoder", "act", "decoder"]
    assert inputs == (x,)
    parts = PartsNetwork(module, plan)
    assert torch.equal(parts(x)[0], out)
    assert dict(parts.named_parameters()).keys() == dict(module.named_parameters()).keys()
    assert parts.encoder is module.encoder


@pytest.mark.parametrize(
    "step",
    [
        lambda m: m.decoder(F.relu(m.encoder(x))),
        lambda m: [m.decoder(z) * z.sum() for z in [m.encoder(x)]],
        lambda m: [m.decoder(z) if z.shape[1] == 3 else z for z in [m.encoder(x)]],
        lambda m: [(m.decoder(z), m.loss(z, torch.zeros(2, 3))) for z in [m.encoder(x)]],
    ],
    ids=["changed", "read", "shape read", "read by a loss"],
)
def test_what_the_step_reads_itself_ends_there_and_begins_anew(step):
    module = net()
    plan, inputs, _ = planned(module, step)
    assert [part.name for part in plan.parts] == ["encoder", "decoder"]
    assert [tuple(tensor.shape) for tensor in inputs] == [(2, 4), (2, 3)]
    assert [out.shape[1] for out in PartsNetwork(module, plan)(*inputs)] == [3, 4]


@dataclass
class Hidden:
    values: torch.Tensor
    note: str = ""


def test_an_output_in_a_dataclass_leads_on_as_a_tensor_does():
    module = net()
    module.encoder.register_forward_hook(lambda part, args, output: Hidden(output, "note"))
    plan, inputs, out = planned(module, lambda m: m.decoder(m.encoder(x).values))
    assert [part.name for part in plan.parts] == ["encoder", "decoder"]
    assert inputs == (x,)
    assert torch.equal(PartsNetwork(module, plan)(x)[0], out)


def test_of_equal_calls_the_first_counts_and_a_loss_is_no_part():
    module = net()
    plan, inputs, _ = planned(module, lambda m: [m.loss(m.encoder(y), x[:, :3]) for y in (x, 2 * x)])
    assert [part.name for part in plan.parts] == ["encoder"]
    assert inputs == (x,)


def test_a_part_called_again_on_what_another_gave_keeps_its_link():
    module = net()
    plan, _, out = planned(module, lambda m: m.decoder(m.encoder(m.decoder(m.encoder(x)))))
    assert [part.name for part in plan.parts] == ["encoder", "decoder", "encoder", "decoder"]
    assert torch.equal(PartsNetwork(module, plan)(x)[0], out)


def test_the_plan_survives_a_checkpoint_and_the_network_a_deep_copy(tmp_path):
    module = net()
    plan, inputs, out = planned(module, lambda m: m.decoder(input=m.act(m.encoder(x))))
    torch.save(plan.state_dict(), tmp_path / "plan")
    again = PartsPlan.from_state_dict(torch.load(tmp_path / "plan", weights_only=True))
    assert again == plan
    assert torch.equal(copy.deepcopy(PartsNetwork(module, again))(*inputs)[0], out)


def test_parts_keep_their_modes_and_their_names_below_others():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))])

    module = Outer().train()
    module.body[1].eval()
    plan, _, _ = planned(module, lambda m: m.body[1][0](m.body[1](m.body[0](x))))
    parts = PartsNetwork(module, plan)
    assert (parts.training, parts.get_submodule("body.1").training, parts.get_submodule("body.0").training) == (
        True,
        False,
        True,
    )
    assert dict(parts.named_parameters()).keys() == dict(module.named_parameters()).keys()


def test_the_network_s_own_forward_is_whole_and_what_it_calls_are_no_parts():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with StepRecorder(module).recording() as step:
        step.run_whole(module, torch.ones(1, 2))
    assert (step.is_whole, step.calls, step.ran) == (True, [], {"0", "1"})
    nn.Linear(2, 2)(torch.ones(1, 2))
    assert step.ran == {"0", "1"}
