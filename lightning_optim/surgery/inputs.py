"""Arguments of one call of a network, from whatever holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """Positional and keyword arguments of one call.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Any) -> Inputs:
        """The arguments that a batch stands for.

        A mapping holds keyword arguments, a tuple or list positional ones; ``Inputs`` stay as they are; anything else
        is the only argument.

        Example:
            >>> Inputs.of({"tokens": 1}).kwargs, Inputs.of([1, 2]).args, Inputs.of(3).args
            ({'tokens': 1}, (1, 2), (3,))
        """
        if isinstance(batch, Inputs):
            return batch
        if isinstance(batch, Mapping):
            return cls((), {str(key): value for key, value in batch.items()})
        return cls(tuple(batch) if isinstance(batch, (tuple, list)) else (batch,))

    def call(self, function: Callable[..., Any]) -> Any:
        """Call a function with these arguments."""
        return function(*self.args, **self.kwargs)


def call_network(network: Callable[..., Any], batch: Any) -> Any:
    """Call a network on a batch; see ``Inputs.of``."""
    return Inputs.of(batch).call(network)
