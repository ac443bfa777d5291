"""Interface of input maps: what a teacher is given where it does not take the student's inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FunctionType
from typing import Any

from lightning_optim.surgery.inputs import Inputs


class InputMap(ABC):
    """Input map: from the inputs of the student's network, and the batch, to those of the teacher."""

    @abstractmethod
    def __call__(self, inputs: Inputs, batch: Any) -> Any:
        """Return the teacher's inputs.

        Args:
            inputs: What the student's network was given; ``inputs.args`` and ``inputs.kwargs``.
            batch: What the training step received.

        Returns:
            ``Inputs``; or a mapping of keyword arguments, a tuple or list of positional ones, or the only argument.
        """


def name_of_map(input_map: Callable[[Inputs, Any], Any]) -> str:
    """How an input map is called in messages: a function by its name, an object by its class.

    Example:
        >>> name_of_map(lambda inputs, batch: batch)
        '<lambda>'
    """
    return input_map.__name__ if isinstance(input_map, FunctionType) else type(input_map).__name__
