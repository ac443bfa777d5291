from lightning_optim.quantization.simulation.operators import Role
from lightning_optim.quantization.simulation.plan import Operator, Plan, Record

CONV, RELU, ADD = (
    Operator("conv", "conv2d", Role.CONVOLUTION),
    Operator("act", "relu", Role.RELU),
    Operator("", "add", Role.ADD),
)


def recorded(plan, rows, reads=(), sources=None):
    """What one process says after a batch: its operators, each behind the one before, and who read whom."""
    record, after = Record(plan), ""
    for key, operator in rows:
        if key not in plan.operators:
            record.add(key, operator, after)
        after = key
    for origin, reader in reads:
        record.read(origin, reader)
    record.sources.update(sources or {})
    return record.state_dict()


def test_operators_that_come_later_stand_where_they_ran():
    first = Plan().grown([recorded(Plan(), [("a", CONV), ("d", CONV)])])
    grown = first.grown([recorded(first, [("a", CONV), ("b", RELU), ("c", ADD), ("d", CONV), ("e", ADD)])])
    assert [*grown.operators] == ["a", "b", "c", "d", "e"]


def test_processes_that_took_two_branches_know_both():
    one, other = recorded(Plan(), [("a", CONV)], [("a", "output")]), recorded(Plan(), [("b", CONV)], [("b", "output")])
    plan = Plan().grown([one, other], frozenset({"norm"}))
    assert {*plan.operators} == {"a", "b"}
    assert plan.foldable == {"norm"}
    assert plan.state_dict() == Plan.from_state_dict(plan.state_dict()).state_dict()
    assert Record(plan).is_empty


def test_processes_that_number_calls_unlike_agree_on_numbers_alone():
    one, other = (recorded(Plan(), [("a", CONV)], sources={"norm": order}) for order in (["a", "b"], ["c", "a"]))
    plan = Plan().grown([one, other])
    assert not plan.operators
    assert plan.sources == {"norm": ["a", "b", "c"]}
    assert Plan().grown([one, recorded(Plan(), [], sources={"norm": ["a"]})]).operators


def test_a_range_behind_a_relu_is_outdated_once_another_operator_reads_before_it():
    rows = [("conv", CONV), ("act", RELU), ("add", ADD)]
    plan = Plan().grown([recorded(Plan(), rows[:2], [("conv", "act"), ("act", "output")])])
    assert plan.rounded == {"act"}
    grown = plan.grown([recorded(plan, rows, [("conv", "act"), ("conv", "add")])])
    assert plan.outdated(grown) == ("conv",)
    assert grown.rounded == {"act", "conv"}
    again = grown.grown([recorded(grown, rows, [("act", "add")])])
    assert grown.outdated(again) == ()


def test_ranges_of_a_module_are_outdated_once_it_is_called_again():
    rows = [("norm.in:linear", CONV), ("normal:linear", CONV)]
    plan = Plan().grown([recorded(Plan(), rows)])
    assert plan.outdated(plan.grown([recorded(plan, rows, sources={"norm": ["a", "b"]})])) == ("norm.in:linear",)


def test_an_activation_that_comes_about_in_two_ways_varies_from_then_on():
    histories = {}
    for history, varied in ((1, set()), (1, set()), (2, {"a"})):
        record = Record(Plan(), histories)
        record.follow("a", history)
        assert record.varied == varied
    plan = Plan().grown([record.state_dict()])
    again = Record(plan, histories)
    again.follow("a", 3)
    assert again.is_empty
