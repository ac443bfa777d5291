"""Teacher from a folder or a repository of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.teacher.network import NetworkTeacher
from lightning_optim.errors import ArtefactError, reason_of
from lightning_optim.optional import require


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFace(NetworkTeacher):
    """Teacher from Hugging Face: a folder that ``save_pretrained`` has written, or a repository.

    Needs the extra ``huggingface``. Weights are read from safetensors alone, and code that comes with a model is never
    run. A repository is looked for in the local cache, unless ``local_files_only`` is False. The teacher's output is an
    object: name its tensor to the loss by ``teacher_output="logits"``.

    Args:
        precision: Number format of the teacher; see ``NetworkTeacher``.
        input_map: What the teacher is given; see ``NetworkTeacher``.
        device: Where it computes; see ``NetworkTeacher``.
        compile: Whether it is compiled; see ``NetworkTeacher``.
        model: A folder, or the id of a repository, such as ``"google-bert/bert-base-uncased"``.
        task: Class of ``transformers`` that builds the model, such as ``"AutoModelForSequenceClassification"``.
        revision: Branch, tag or commit of a repository; ``None`` is its main branch.
        local_files_only: Whether nothing is downloaded.

    Raises:
        ValueError: If the task is no class of this kind.
        ArtefactError: In ``load``, if the model is not there, needs code of its own, or holds no weights for the task.

    Example:
        >>> HuggingFace(model="folder", task="AutoModelForSequenceClassification").local_files_only
        True
    """

    model: str | Path
    task: str = "AutoModel"
    revision: str | None = None
    local_files_only: bool = True

    def __post_init__(self) -> None:
        NetworkTeacher.__post_init__(self)
        if not self.task.startswith("AutoModel"):
            raise ValueError(
                f"task must name a class of transformers that begins with 'AutoModel', got {self.task!r}: such as "
                "'AutoModelForSequenceClassification' or 'AutoModelForCausalLM'"
            )

    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        kind = getattr(require("transformers", "huggingface"), self.task, None)
        if kind is None:
            raise ArtefactError(f"transformers has no class {self.task!r}; set task to one that it has")
        try:
            module, report = kind.from_pretrained(
                str(Path(self.model).expanduser()) if isinstance(self.model, Path) else self.model,
                revision=self.revision or "main",
                local_files_only=self.local_files_only,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # of transformers, its hub and safetensors, which share no class
            raise ArtefactError(f"{self.model} cannot be loaded as {self.task}: {self._advice(error)}") from error
        self._check_complete(report)
        loaded: nn.Module = module
        return loaded

    def _advice(self, error: Exception) -> str:
        text = reason_of(error).rstrip(". ")
        if "trust_remote_code" in str(error):
            return (
                "it comes with code of its own, which is never run: where you trust that code, build the module and "
                "give it as teacher"
            )
        if "safetensors" in text and "no file" in text:
            return f"{text}; weights are read from safetensors alone: save it again by save_pretrained"
        if isinstance(error, OSError):
            return f"{text}; give a folder that save_pretrained has written, or download it by local_files_only=False"
        return text

    def _check_complete(self, report: dict[str, Any]) -> None:
        """Refuse a model some of whose weights were drawn at random, for want of saved ones."""
        lacking = sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in report.get(key, ()))
        if lacking:
            raise ArtefactError(
                f"{self.model} is no {self.task}: {len(lacking)} of its weights are not in it, or of another shape "
                f"(first {lacking[0]!r}), and would be random; set task to what it was trained for"
            )
