"""Teacher that ``torch.export`` has captured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from typing_extensions import override

from lightning_optim.checked import checked
from lightning_optim.distillation.teacher.network import NetworkTeacher
from lightning_optim.surgery.torch_private import OpOverload, arguments_of

NO_PT2 = (
    "a .pt2 file is not read, since torch may run code that it pickles: load it yourself where you trust it and give "
    "ExportedTeacher the program, or save the teacher as ONNX (ONNXFile) or its weights as safetensors (Safetensors)"
)


@final
@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedTeacher(NetworkTeacher):
    """Teacher from an exported program: an object of ``torch.export``, in memory, without the code of its network.

    It computes as it was captured, so capture it in evaluation mode and with a dynamic batch, or train with the batch
    that it was captured with and ``drop_last=True``. Losses may look inside it by the names of its modules.

    Args:
        precision: Number format of the teacher; see ``NetworkTeacher``.
        input_map: What the teacher is given; see ``NetworkTeacher``.
        device: Where it computes; see ``NetworkTeacher``.
        compile: Whether it is compiled; see ``NetworkTeacher``.
        program: The program; it is left as it is.

    Raises:
        TypeError: If it is none, such as the path of a ``.pt2`` file.
        ValueError: If it was captured in training mode.

    Example:
        >>> net, batch = nn.Linear(2, 3), torch.export.Dim("batch")
        >>> program = torch.export.export(net, (torch.ones(4, 2),), dynamic_shapes=({0: batch},))
        >>> teacher = ExportedTeacher(program=program).load(lambda: net)
        >>> torch.equal(teacher(torch.ones(7, 2)), net(torch.ones(7, 2)))
        True
    """

    program: Any

    def __post_init__(self) -> None:
        NetworkTeacher.__post_init__(self)
        if not isinstance(self.program, ExportedProgram):
            found = type(self.program).__name__
            advice = NO_PT2 if str(self.program).endswith(".pt2") else "give what torch.export.export returns"
            raise TypeError(f"program must be an ExportedProgram, got {found}: {advice}")
        trains = next((node for node in self.program.graph.nodes if _trains(node)), None)
        if trains is not None:
            raise ValueError(
                f"the program was captured in training mode ({trains.target} trains in it), which nothing changes "
                "afterwards: capture it again after eval()"
            )

    @override
    def load(self, student: Callable[[], nn.Module]) -> nn.Module:
        return torch.export.unflatten(self.program)


def _trains(node: fx.Node) -> bool:
    """Whether an operator of the graph does what it does in training alone."""
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    names = [argument.name for argument in arguments_of(target)]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    dropout = given.get("dropout_p", 0.0)
    return any(given.get(name) is True for name in ("train", "training")) or (
        isinstance(dropout, float) and dropout > 0.0
    )
