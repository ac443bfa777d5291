"""Multi-head attention that can lose heads: PyTorch's own derives the width of a head from the width of its input."""

# N batch, T queries, S keys, H heads, D width of a head, E width of the output

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_optim.surgery.bypass import Bypass

_DERIVED = ("embed_dim", "kdim", "vdim", "head_dim")
"""What PyTorch's own attention holds as numbers, and one with cut heads reads off its weights."""


@final
class PrunedMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention with as many heads, of whatever width, as its weights hold.

    Names of parameters, arguments and results are those of ``nn.MultiheadAttention``. Attention weights that are
    returned, and their mean, are of the heads that are left; an ``attn_mask`` for each head is one for each of these.
    ``free_heads`` turns a live module into one; the class itself is never called.
    """

    scale: float

    # The parent holds these as numbers; here they are read off the weights, so that they follow every cut.

    @property
    def embed_dim(self) -> int:
        """Width of the output."""
        return self.out_proj.weight.shape[0]

    @property
    def kdim(self) -> int:
        """Width of the keys."""
        return self._projections()[1][0].shape[1]

    @property
    def vdim(self) -> int:
        """Width of the values."""
        return self._projections()[2][0].shape[1]

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return int(self.out_proj.weight.shape[1] // self.num_heads)

    @override
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see ``nn.MultiheadAttention.forward``."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, and needs it; give the mask too")
        is_batched = query.dim() == 3
        heads = self._heads(*(self._batch_first(tensor) for tensor in (query, key, value)))
        by_hint = is_causal and key_padding_mask is None and not need_weights
        bias = None if by_hint else self._bias(attn_mask, key_padding_mask, *heads[:2])
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            logits = (heads[0] * self.scale) @ heads[1].transpose(-2, -1)
            weights = F.dropout((logits if bias is None else logits + bias).softmax(-1), dropout)
            mixed = weights @ heads[2]
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batched else weights.squeeze(0)
        else:
            mixed = F.scaled_dot_product_attention(*heads, bias, dropout, is_causal=by_hint, scale=self.scale)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not is_batched:
            return output.squeeze(0), weights
        return output if self.batch_first else output.transpose(0, 1), weights

    def _batch_first(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 2:
            return tensor.unsqueeze(0)
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of query, key and value."""
        packed: Tensor | None = self.in_proj_weight  # which the parent's annotation takes for granted
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if packed is None else packed.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [*zip(weights, biases, strict=True)]

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every head, ``[N, H, T or S, D]``, with the keys that the module adds."""
        into = self._projections()
        q, k, v = (F.linear(x, *projection) for x, projection in zip((query, key, value), into, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (_appended(x, bias) for x, bias in ((k, self.bias_k), (v, self.bias_v)))
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _bias(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor, key: Tensor
    ) -> Tensor | None:
        """What both masks add to the logits, broadcast to ``[N, H, T, S]``."""
        added = (self.bias_k is not None) + self.add_zero_attn
        shape = (query.shape[0], self.num_heads, query.shape[2], key.shape[2] - added)
        total = None
        for mask, as_logits in ((attn_mask, _per_head), (key_padding_mask, _per_key)):
            if mask is not None:
                bias = F.pad(_additive(as_logits(mask, shape), query), (0, added))
                total = bias if total is None else total + bias
        return total


def free_heads(attention: nn.MultiheadAttention) -> None:
    """Turn PyTorch's attention into one that can lose heads, in place; what it computes stays.

    Args:
        attention: Not of a subclass, which may compute something else.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2)
        >>> free_heads(attention)
        >>> attention.head_dim, type(attention).__name__
        (4, 'PrunedMultiheadAttention')
    """
    scale = attention.head_dim**-0.5
    for name in _DERIVED:
        del vars(attention)[name]
    attention.__class__ = PrunedMultiheadAttention
    attention.scale = scale


def attend_with_cut_heads(attention: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> Any:
    """Run PyTorch's own attention, whose weights were cut for this call, as ``free_heads`` would have it run.

    Args:
        attention: Not of a subclass; its class and attributes are left as they are.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Example:
        >>> attention, x = nn.MultiheadAttention(8, 2), torch.ones(3, 1, 8)
        >>> attend_with_cut_heads(attention, x, x, x)[0].shape
        torch.Size([3, 1, 8])
    """
    stand_in = PrunedMultiheadAttention.__new__(PrunedMultiheadAttention)
    vars(stand_in).update(
        {name: value for name, value in vars(attention).items() if name not in (*_DERIVED, "forward")}
    )
    stand_in.scale = attention.head_dim**-0.5
    return stand_in.forward(*args, **kwargs)


def plain_attentions(root: nn.Module) -> list[nn.MultiheadAttention]:
    """Every module that is PyTorch's own attention, and no subclass of it."""
    return [module for module in root.modules() if type(module) is nn.MultiheadAttention]


def free_cut_heads(root: nn.Module) -> None:
    """Turn every attention whose cut weights PyTorch's own code cannot use into one that can use them."""
    for attention in plain_attentions(root):
        if not is_whole(attention):
            free_heads(attention)


def leave_fast_paths(root: nn.Module) -> None:
    """Let PyTorch's encoders evaluate as they train, where one of their modules is no longer PyTorch's.

    Their kernels compute a whole layer at once from the tensors of its modules, and know no other modules.
    """
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer) and any(
            isinstance(part, PrunedMultiheadAttention | Bypass) for part in module.modules()
        ):
            leave_fast_path(module)


def leave_fast_path(module: nn.TransformerEncoder | nn.TransformerEncoderLayer) -> None:
    """Let one of PyTorch's encoders, or a layer of one, evaluate as it trains.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> leave_fast_path(layer)
        >>> layer.activation_relu_or_gelu
        0
    """
    vars(module).update(_off_fast_path(module))


@contextmanager
def off_fast_path(module: nn.Module) -> Iterator[None]:
    """Context in which one of PyTorch's encoders, or a layer of one, evaluates as it trains."""
    off = _off_fast_path(module) if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer) else {}
    before = {name: vars(module)[name] for name in off}
    vars(module).update(off)
    try:
        yield
    finally:
        vars(module).update(before)


def _off_fast_path(module: nn.TransformerEncoder | nn.TransformerEncoderLayer) -> dict[str, int]:
    return {"use_nested_tensor": False} if isinstance(module, nn.TransformerEncoder) else {"activation_relu_or_gelu": 0}


def is_whole(attention: nn.MultiheadAttention) -> bool:
    """Whether PyTorch's own code can use the weights that an attention holds."""
    width = attention.num_heads * attention.head_dim
    weights = [attention.in_proj_weight, attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    shapes = [None if weight is None else tuple(weight.shape) for weight in weights]
    kinds = [(3 * width, width), (width, width), (width, attention.kdim), (width, attention.vdim)]
    fits = all(shape in (None, kind) for shape, kind in zip(shapes, kinds, strict=True))
    return fits and attention.embed_dim == width and tuple(attention.out_proj.weight.shape) == (width, width)


def _appended(x: Tensor, bias: Tensor) -> Tensor:
    """One more position, the same for the whole batch: ``[N, S + 1, H * D]``."""
    return torch.cat([x, bias.expand(x.shape[0], -1, -1)], 1)


def _per_head(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    batch, heads, queries, keys = shape
    if mask.dim() == 3 and mask.shape[0] == batch * heads:
        return mask.reshape(batch, heads, queries, keys)
    if tuple(mask.shape) != (queries, keys):
        raise RuntimeError(
            f"attn_mask must be [{queries}, {keys}], or [{batch * heads}, {queries}, {keys}] with one mask for each "
            f"of the {heads} heads that are left, got {list(mask.shape)}"
        )
    return mask


def _per_key(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    if mask.numel() != shape[0] * shape[3]:
        raise RuntimeError(f"key_padding_mask must be [{shape[0]}, {shape[3]}], got {list(mask.shape)}")
    return mask.view(shape[0], 1, 1, shape[3])


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype.is_floating_point:
        return mask.to(like.dtype)
    return mask.new_zeros(mask.shape, dtype=like.dtype).masked_fill(mask, float("-inf"))
