"""Functions of all techniques and of cost in one name: tensors in, tensors out.

Unlike the packages, importing this file imports torch.

Example:
    >>> import torch
    >>> import lightning_optim.functional as LF
    >>> LF.mask_from_scores(torch.tensor([3.0, 1.0]), sparsity=0.5)
    tensor([ True, False])
"""

from lightning_optim.cost.count import count_bytes, count_macs, count_parameters
from lightning_optim.distillation.functional import attention_transfer_loss, soft_target_loss
from lightning_optim.distillation.kernel.attention import QueriesAndKeys, attention_transfer_loss_from_queries
from lightning_optim.distillation.kernel.hidden import soft_target_loss_from_hidden
from lightning_optim.distillation.kernel.logits import soft_target_loss_
from lightning_optim.distillation.kernel.top import top_soft_target_loss
from lightning_optim.pruning.functional import drop_lowest, magnitude, mask_from_scores
from lightning_optim.quantization.functional import (
    affine_qparams,
    bias_floor,
    channel_extreme,
    channel_range,
    pair_extreme,
    per_channel,
    quantize,
    quantize_bias,
    round_bias,
    symmetric_scale,
    value_range,
)
from lightning_optim.regularization.functional import (
    block_rate,
    drop_at_random,
    drop_blocks,
    group_lasso_penalty,
    jacobian_penalty,
    l1_penalty,
    l2_penalty,
    mix_samples,
    orthogonality_penalty,
    paste_box,
    smooth_labels,
    spectral_penalty,
    sum_of_squares,
)

__all__ = [
    "QueriesAndKeys",
    "affine_qparams",
    "attention_transfer_loss",
    "attention_transfer_loss_from_queries",
    "bias_floor",
    "block_rate",
    "channel_extreme",
    "channel_range",
    "count_bytes",
    "count_macs",
    "count_parameters",
    "drop_at_random",
    "drop_blocks",
    "drop_lowest",
    "group_lasso_penalty",
    "jacobian_penalty",
    "l1_penalty",
    "l2_penalty",
    "magnitude",
    "mask_from_scores",
    "mix_samples",
    "orthogonality_penalty",
    "pair_extreme",
    "paste_box",
    "per_channel",
    "quantize",
    "quantize_bias",
    "round_bias",
    "smooth_labels",
    "soft_target_loss",
    "soft_target_loss_",
    "soft_target_loss_from_hidden",
    "spectral_penalty",
    "sum_of_squares",
    "symmetric_scale",
    "top_soft_target_loss",
    "value_range",
]
