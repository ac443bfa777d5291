"""Entry of the application, as projects have it that were made from the template."""

import os
import sys
from pathlib import Path

import hydra
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig

root = Path(__file__).parents[1]
sys.path.insert(0, str(root))
os.environ.setdefault("PROJECT_OUTPUT", str(Path.cwd()))


def instantiate_callbacks(callbacks_cfg: DictConfig) -> list[Callback]:
    nodes = [cfg for _, cfg in callbacks_cfg.items() if isinstance(cfg, DictConfig) and "_target_" in cfg]
    return [hydra.utils.instantiate(cfg) for cfg in nodes]


def train(cfg: DictConfig) -> tuple[dict, dict]:
    seed_everything(cfg.seed, workers=True)
    datamodule: LightningDataModule = hydra.utils.instantiate(cfg.data)
    model: LightningModule = hydra.utils.instantiate(cfg.model)
    callbacks = instantiate_callbacks(cfg.get("callbacks"))
    trainer: Trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks, logger=False)
    if cfg.get("train"):
        trainer.fit(model=model, datamodule=datamodule, ckpt_path=cfg.get("ckpt_path"))
    train_metrics = trainer.callback_metrics
    if cfg.get("test"):
        trainer.test(model=model, datamodule=datamodule, ckpt_path=trainer.checkpoint_callback.best_model_path)
    return {**train_metrics, **trainer.callback_metrics}, {"model": model, "callbacks": callbacks, "trainer": trainer}


@hydra.main(version_base="1.3", config_path=str(root / "configs"), config_name="train.yaml")
def main(cfg: DictConfig) -> float:
    metric_dict, _ = train(cfg)
    return float(metric_dict["val/acc"])


if __name__ == "__main__":
    main()
