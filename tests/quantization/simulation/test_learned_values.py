import torch

from lightning_optim.quantization.quantizer.learner import Start
from lightning_optim.quantization.simulation.learned_values import LearnedValues, Sizes


def learned():
    values = LearnedValues()
    values.find("weight/fc", {"step": Start(value=torch.tensor([[0.5], [2.0]]))})
    values.find("activation/fc", {"offset": Start(value=torch.tensor(3.0), unit=torch.tensor(0.5))})
    values.start()
    return values


def test_values_come_back_in_their_sizes_by_name():
    values, device = learned(), torch.device("cpu")
    assert torch.allclose(values.values("weight/fc", device)["step"], torch.tensor([[0.5], [2.0]]))
    assert values.values("activation/fc", device)["offset"].tolist() == 3.0
    assert values.trained.shape == (3,)


def test_the_state_holds_sizes_as_primitives_and_gives_the_same_values():
    values, twin, device = learned(), LearnedValues(), torch.device("cpu")
    state = values.state_dict()
    assert state["sizes"] == {"positive": {"weight/fc/step": [2, 1]}, "shifted": {"activation/fc/offset": []}}
    twin.load_state_dict(state)
    for key, name in (("weight/fc", "step"), ("activation/fc", "offset")):
        assert torch.equal(twin.values(key, device)[name], values.values(key, device)[name])


def test_sizes_survive_saving():
    sizes = Sizes(positive={"a": torch.Size([2, 1])}, shifted={"b": torch.Size([])})
    assert Sizes.from_state_dict(sizes.state_dict()) == sizes
