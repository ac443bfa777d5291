"""Overwriting of tensors in place, though the backward needs what was rounded of them."""

from __future__ import annotations

import weakref
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_optim.quantization.rounding.fake_quantize import allow_overwriting, holds_values, input_keeper
from lightning_optim.surgery.torch_private import pytree


@final
class Overwriting:
    """Overwriting, in one forward pass, of tensors that were rounded.

    The rounding's backward needs its input, and holds the tensor itself while nobody changes it. Whoever is to
    change it calls ``allow`` before, which lets the backward take a copy.

    Attributes:
        saved_by_backward: Address of a tensor's memory -> the nodes of the backward that need it, and the tensor.
        external_tensors: Tensors that others hold: parameters, and what the network was given.

    Example:
        >>> from lightning_optim.quantization.rounding.fake_quantize import fake_quantize
        >>> x = torch.tensor([0.3, 9.0], requires_grad=True)
        >>> doubled, overwriting = 2.0 * x, Overwriting()
        >>> y = fake_quantize(doubled, torch.tensor(0.5), None, -8, 7)
        >>> overwriting.note(doubled, y)
        >>> overwriting.allow([doubled])
        >>> _ = doubled.zero_()
        >>> y.sum().backward()
        >>> x.grad.tolist()
        [2.0, 0.0]
    """

    def __init__(self) -> None:
        self.saved_by_backward: dict[int, list[tuple[Node, weakref.ref[Tensor]]]] = {}
        self.external_tensors: list[Tensor] = []

    def note(self, tensor: Tensor, rounded: Tensor) -> None:
        """Take note of a tensor that was rounded, if the backward of the rounding needs it."""
        keeper = input_keeper(rounded)
        if keeper is not None:
            self.saved_by_backward.setdefault(_address(tensor), []).append((keeper, weakref.ref(tensor)))

    def allow(self, values: Any) -> None:
        """Let tensors be changed in place.

        Args:
            values: The tensors, in whatever tuples, lists and mappings.
        """
        for leaf in pytree.tree_leaves(values) if self.saved_by_backward else ():
            is_plain = isinstance(leaf, Tensor) and holds_values(leaf) and leaf.layout is torch.strided
            for keeper, tensor in self.saved_by_backward.pop(_address(leaf), ()) if is_plain else ():
                allow_overwriting(keeper, tensor())


def _address(tensor: Tensor) -> int:
    """Return where a tensor's memory begins, which its views share."""
    return tensor.untyped_storage().data_ptr()
