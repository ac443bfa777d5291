"""Transfer losses in a fit: what they cannot compare is refused before any step, with what to do."""

import pytest
import torch

from distilled_by_hand import Student, distilling, fit
from lightning_optim.distillation import CRD, DKD, RKD, AttentionMap, Hint, SoftTarget
from lightning_optim.errors import SampleError, TapError

pytestmark = pytest.mark.filterwarnings("ignore")


def test_an_example_input_of_one_sample_refuses_nothing():
    for loss in (RKD(student="net.head:input"), CRD(student="net.head:input"), DKD()):
        student = Student()
        student.example_input_array = torch.zeros(1, 1, 6, 6)
        fit(student, distilling(loss))


def test_a_last_batch_of_one_is_refused_with_what_to_do():
    with pytest.raises(SampleError, match=r"RKD compares samples .*drop_last=True where the last one is smaller"):
        fit(Student(), distilling(RKD(student="net.block")), size=5)


def test_labels_that_the_batch_does_not_hold_are_refused_before_any_step():
    student = Student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(SampleError, match="DKD needs integer labels"):
        fit(student, distilling(DKD(labels="y")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_features_that_no_trainable_weight_has_made_are_refused_before_any_step():
    student = Student()
    student.net.stem.requires_grad_(False)
    student.net.block.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(TapError, match=r"features at 'net.block' have no gradient, so a loss on them would teach"):
        fit(student, distilling(AttentionMap(student="net.block")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_graph_of_an_earlier_network_without_the_tap_is_refused_and_a_reset_drops_it():
    def compiled():
        student = Student()
        student.net = torch.compile(student.net, backend="eager")
        return student

    torch._dynamo.reset()
    fit(compiled(), distilling(SoftTarget()))
    with pytest.raises(
        TapError, match=r"takes over the graph of an earlier network .* call torch._dynamo.reset\(\) before"
    ):
        fit(compiled(), distilling(Hint(student="net.block")))
    torch._dynamo.reset()
    fit(compiled(), distilling(Hint(student="net.block")))
