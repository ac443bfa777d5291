import weakref

from torch import nn

from lightning_optim.surgery.copies import eval_copy


def test_a_trainer_is_not_copied():
    class Trainer:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    class OwnTrainer(Trainer): ...

    net, trainer = nn.Linear(2, 2), OwnTrainer()
    net.strong, net.weak = trainer, weakref.proxy(trainer)
    assert eval_copy(net).strong is eval_copy(net).weak is None
