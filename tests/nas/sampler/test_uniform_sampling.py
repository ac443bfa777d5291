from lightning_optim.nas import UniformSampling
from support import three_choices


def test_a_step_trains_the_one_path_that_the_supernet_draws():
    supernet = three_choices(3)
    state = UniformSampling().start(supernet, 5)
    for step in range(10):
        (path,) = state.paths(step, 0.5)
        assert path.architecture == supernet.sample(5, step)
        assert not path.mixtures
