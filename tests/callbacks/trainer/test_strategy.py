import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lightning_optim.callbacks.trainer.strategy import StrategyKind, strategy_kind, strategy_name
from support import quiet


class OwnDDP(DDPStrategy): ...


class OwnFSDP(FSDPStrategy): ...


class OwnModelParallel(ModelParallelStrategy): ...


class OwnDeepSpeed(DeepSpeedStrategy): ...


class Holder:
    """Stands for a trainer under a strategy that a CPU cannot run."""

    def __init__(self, kind):
        self.strategy = kind.__new__(kind)
        self.strategy._launcher = None


@pytest.mark.parametrize("strategy", ["ddp", DDPStrategy, OwnDDP])
def test_ddp_and_whatever_derives_from_it(strategy):
    trainer = quiet(strategy=strategy if isinstance(strategy, str) else strategy(), devices=2)
    assert strategy_kind(trainer) is StrategyKind.DDP


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", OwnDDP(start_method="spawn")])
def test_processes_that_end_with_the_fit_are_a_kind_of_their_own(strategy):
    assert strategy_kind(quiet(strategy=strategy, devices=2)) is StrategyKind.SPAWN


def test_one_process():
    assert strategy_kind(Trainer(accelerator="cpu", devices=1, logger=False)) is StrategyKind.SINGLE


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded(kind):
    assert strategy_kind(Holder(kind)) is StrategyKind.SHARDED


@pytest.mark.parametrize("kind", [OwnFSDP, OwnModelParallel, OwnDeepSpeed])
def test_sharded_by_a_class_of_the_users_own_which_messages_name(kind):
    assert strategy_kind(Holder(kind)) is StrategyKind.SHARDED
    assert strategy_name(Holder(kind)) == kind.__name__
