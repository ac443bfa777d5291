"""Trained weights for a module, from a checkpoint, a safetensors file or the folder of a stage."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule

from lightning_optim.errors import ArtefactError
from lightning_optim.recipe.artefact import load_cut, load_weights
from lightning_optim.recipe.search_stage import PICK
from lightning_optim.surgery.cut import apply_cut
from lightning_optim.surgery.weights import load_state, read_plain


def load_trained(module: LightningModule, path: str | Path) -> None:
    """Load weights into a module, bringing it to their shape first where a recipe's stages have cut it.

    Args:
        module: The module as it is built, at full size; changed in place.
        path: A Trainer's checkpoint, a safetensors file of the module's state, or the folder of a stage
            (``outputs/<run>/stages/0-base``). No code in a file is run.

    Raises:
        ArtefactError: If there is no such file, it is broken, or it is of another model.
    """
    path = Path(path)
    if path.is_dir():
        _load_stage(module, path)
    elif path.suffix == ".safetensors":
        load_weights(path, module)
    else:
        _load_checkpoint(module, path)


def _load_stage(module: LightningModule, folder: Path) -> None:
    number = folder.name.split("-")[0]
    if not (folder / "weights.safetensors").is_file() or not number.isdigit():
        raise ArtefactError(f"{folder} is no finished stage; name a folder such as outputs/<run>/stages/0-base")
    stages = {int(stage.name.split("-")[0]): stage for stage in folder.parent.glob("[0-9]*-*") if stage.is_dir()}
    searched = [stages[place] for place in sorted(stages) if (stages[place] / PICK).is_file() and place <= int(number)]
    if searched:
        raise ArtefactError(
            f"{folder} comes after {searched[0].name}, which has searched another architecture: {searched[0] / PICK} "
            "says which; name weights of a module that is built in this shape"
        )
    for place in sorted(stages):
        if place <= int(number) and (stages[place] / "cut.pt").is_file():
            apply_cut(module, load_cut(stages[place] / "cut.pt"))
    load_weights(folder / "weights.safetensors", module)


def _load_checkpoint(module: LightningModule, path: Path) -> None:
    if not path.is_file():
        raise ArtefactError(f"no weights at {path}: name a checkpoint, a safetensors file or the folder of a stage")
    content = read_plain(path, "checkpoint")
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ArtefactError(f"{path} is no checkpoint of a Trainer: it has no 'state_dict'")
    load_state(content["state_dict"], module, path, advice="give weights of this model")
