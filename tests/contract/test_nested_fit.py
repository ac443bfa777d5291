"""A fit inside a fit, such as that of Lightning's learning-rate finder, leaves no trace."""

import pytest
from lightning.pytorch.callbacks import LearningRateFinder


class FindsInBetween(LearningRateFinder):
    """Tries learning rates before the fit and in the middle of it, and takes none."""

    def __init__(self, epochs):
        super().__init__(num_training_steps=3, early_stop_threshold=None, update_attr=False)
        self.epochs = epochs

    def on_fit_start(self, trainer, pl_module):
        if -1 in self.epochs:
            self.lr_find(trainer, pl_module)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in self.epochs:
            self.lr_find(trainer, pl_module)


@pytest.mark.parametrize(
    ("epoch", "order"),
    [
        pytest.param(-1, 1, id="start-after"),
        pytest.param(1, -1, id="middle-before"),
        pytest.param(-1, -1, id="start-before", marks=pytest.mark.crossed),
        pytest.param(1, 1, id="middle-after", marks=pytest.mark.crossed),
    ],
)
def test_a_learning_rate_finder_changes_nothing(case, kit, tmp_path, epoch, order):
    callback = case.make()
    trainer = kit.fit(case.module(), *[callback, FindsInBetween({epoch})][::order], default_root_dir=tmp_path)
    _, expected = kit.plain_fit(case)
    kit.same(expected, kit.state(trainer, callback))
