from functools import partial

import optuna
import pytest

from lightning_optim.search import Condition, Decision, OptunaSampler, SearchSpace

HELD = (Condition(decision="block", options=(1,)),)
SPACE = SearchSpace(
    [
        Decision(name="block", options=("skip", "conv"), default=0),
        Decision(name="kernel", options=("3", "5", "7"), default=1, conditions=HELD),
        Decision(name="width", options=("8", "16", "32"), default=0),
    ]
)


def run(search, steps):
    found = []
    for _ in range(steps):
        proposal = search.ask()
        found.append(proposal)
        width, kernel = proposal.candidate["width"], proposal.candidate["kernel"]
        search.tell(proposal, [float(width + kernel), -float(width)])
    return found


@pytest.mark.parametrize("kind", [optuna.samplers.NSGAIISampler, optuna.samplers.RandomSampler])
def test_any_sampler_proposes_and_goes_on_from_a_state(kind):
    strategy = OptunaSampler(sampler=partial(kind))
    whole = run(strategy.start(SPACE, 0, num_scores=2), 12)
    assert len({tuple(proposal.candidate.values()) for proposal in whole}) == 12
    first, second = strategy.start(SPACE, 0, num_scores=2), strategy.start(SPACE, 0, num_scores=2)
    run(first, 7)
    second.load_state_dict(first.state_dict())
    assert run(second, 5) == whole[7:]


def test_the_state_of_another_sampler_is_refused():
    state = OptunaSampler(sampler=partial(optuna.samplers.RandomSampler)).start(SPACE, 0).state_dict()
    with pytest.raises(ValueError, match="another strategy"):
        OptunaSampler().start(SPACE, 0).load_state_dict(state)


def test_inactive_decisions_are_no_parameters_of_a_trial():
    asked = []

    class Recording(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            asked.append((trial.number, name))
            return super().sample_independent(study, trial, name, distribution)

    search = OptunaSampler(sampler=Recording).start(SPACE, 0, num_scores=2)
    skipped = [number for number, proposal in enumerate(run(search, 6)) if proposal.candidate["block"] == 0]
    numbers = {number for number, name in asked if name == "kernel"}
    assert numbers
    assert skipped
    assert len(numbers) < len({number for number, _ in asked})
