"""Pruning until a metric falls too far: where one fit lands, on the digits."""

from __future__ import annotations

from lightning.pytorch import Callback, seed_everything

from benchmarks.common import quiet_trainer
from lightning_optim import PruningScheduler, Window
from lightning_optim.demo import Classifier, Digits, ResidualNet
from lightning_optim.pruning import LAMP, MetricDrop
from lightning_optim.schedule import Linear

# 500 images for validation: one of them is 0.2 points, the least drop that can be seen, and what is allowed.
NUM_VALIDATION, ALLOWED, SEEDS = 500, 0.002, (0, 1, 2)


def measure_until() -> dict[str, float]:
    """Single weights of a small residual net, asked for 99 %, in a fit at a tenth of the base's learning rate.

    The worst of three seeds: how far the last validation lies below that of the net before pruning and below that of
    the same fit without pruning, in points; the sparsity that was reached, the lowest and the highest.
    """
    drops, drops_beside_dense, sparsities = [], [], []
    for seed in SEEDS:
        seed_everything(seed, verbose=False)
        base = _fit(ResidualNet(widths=(16, 32), stem_stride=2), seed, 4e-3, [])
        before, weights = base[1], {name: value.clone() for name, value in base[0].state_dict().items()}
        ends = []
        pruning = PruningScheduler(
            schedule=Linear(end=0.99),
            allocation=LAMP(),
            window=Window(end=0.8, every=0.08),
            until=MetricDrop(monitor="val/accuracy", max_drop=ALLOWED, patience=1, reference=before),
        )
        for callbacks in ([], [pruning]):
            net = ResidualNet(widths=(16, 32), stem_stride=2)
            net.load_state_dict(weights)
            ends.append(_fit(net, seed + 100, 4e-4, callbacks)[1])
        dense, pruned = ends
        drops.append(100.0 * (before - pruned))
        drops_beside_dense.append(100.0 * (dense - pruned))
        sparsities.append(pruning.sparsity)
    return {
        "until_allowed_drop_points": 100.0 * ALLOWED,
        "until_worst_drop_points": max(drops),
        "until_worst_drop_points_beside_dense_fit": max(drops_beside_dense),
        "until_lowest_sparsity": min(sparsities),
        "until_highest_sparsity": max(sparsities),
    }


def _fit(net: ResidualNet, seed: int, lr: float, callbacks: list[Callback]) -> tuple[ResidualNet, float]:
    """Train for 24 epochs; the net, and its accuracy in validation at the end."""
    module = Classifier(net, lr=lr, memory_format="contiguous")
    data = Digits(seed=seed, num_validation=NUM_VALIDATION)
    trainer = quiet_trainer(callbacks, max_epochs=24, num_sanity_val_steps=0)
    trainer.fit(module, data)
    (result,) = trainer.validate(module, data, verbose=False)
    return net, result["val/accuracy"]
