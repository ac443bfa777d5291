"""Attention of a network: recorded where it is computed, by whoever's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_optim.distillation.kernel.attention import QueriesAndKeys
from lightning_optim.surgery.tap import Surroundings
from lightning_optim.surgery.torch_private import is_recomputing
from lightning_optim.surgery.undispatched import multi_head_attention_forward

# Queries and keys, or logits ``[B, H, Q, K]`` where the code at hand makes these anyway.
Attention = QueriesAndKeys | Tensor


@final
class AttentionTaps:
    """Recorder of the attention that modules compute, while it is open.

    Seen are calls of ``scaled_dot_product_attention``, whoever makes them, and ``nn.MultiheadAttention``. What they
    compute, and how, is left as it is. A forward that runs once more in the backward is not seen twice.

    Example:
        >>> import torch
        >>> layer, taps = nn.MultiheadAttention(4, 2, batch_first=True), AttentionTaps()
        >>> taps.attach({"attention": layer})
        >>> taps.open()
        >>> x = torch.ones(1, 3, 4)
        >>> _ = layer(x, x, x, need_weights=False)
        >>> [each.shape for each in taps.take()["attention"][0]]
        [(1, 2, 3, 3)]
    """

    def __init__(self) -> None:
        self._around = Surroundings(self._recorder)
        self._passes: dict[str, list[list[Attention]]] = {}
        self._is_open = False

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        """Listen to ``modules``, each under its name."""
        self._around.attach(modules)

    def open(self) -> None:
        """Forget what was seen and start to record."""
        self._passes, self._is_open = {}, True

    def close(self) -> None:
        """Stop recording and forget what was seen."""
        self._passes, self._is_open = {}, False

    def take(self) -> dict[str, list[list[Attention]]]:
        """Stop recording; for each module that ran, the attentions of each of its passes, in order."""
        passes = self._passes
        self.close()
        return passes

    def remove(self) -> None:
        """Take the hooks off."""
        self._around.remove()
        self.close()

    def _recorder(self, name: str) -> AbstractContextManager[Any] | None:
        if not self._is_open or is_recomputing():
            return None
        found: list[Attention] = []
        self._passes.setdefault(name, []).append(found)
        return _Recorder(found)


@final
class _Recorder(TorchFunctionMode):
    def __init__(self, found: list[Attention]) -> None:
        super().__init__()
        self._found = found
        self._heads: int | None = None  # inside PyTorch's own attention: how many heads its logits have

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._inside(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._found.append(_queries_and_keys(*args, **kwargs))
        elif func is F.softmax and self._heads is not None:
            self._found.append(args[0].unflatten(0, (-1, self._heads)))
        return func(*args, **kwargs)

    def _inside(self, *args: Any, **kwargs: Any) -> Any:
        """Listen to what PyTorch's own attention calls: one of the two above."""
        self._heads = _heads(*args, **kwargs)
        try:
            with self:
                return multi_head_attention_forward(*args, **kwargs)
        finally:
            self._heads = None


def _heads(query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_heads: int, *_: Any, **__: Any) -> int:
    return num_heads


def _queries_and_keys(  # the signature of torch's function
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> QueriesAndKeys:
    if query.ndim == 3:  # without heads
        query, key = query.unsqueeze(1), key.unsqueeze(1)
        attn_mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
    common = torch.promote_types(query.dtype, key.dtype)  # under autocast, they may be of two number formats
    return QueriesAndKeys(query.to(common), key.to(common), attn_mask, is_causal, scale)
