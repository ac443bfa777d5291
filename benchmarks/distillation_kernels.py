"""What do the kernels of distillation take, beside the same losses written with torch's own operators?

    python -m benchmarks.distillation_kernels [--tokens 4096] [--vocabulary 32768] [--rounds 5]

All on one thread, forward and backward pass, the sides in turns within one process, in CPU time; a ratio is the median
of the rounds' ratios. Memory is the largest number of bytes that were allocated at once beyond those before the call,
in units of one float32 tensor of logits.

- logits: soft targets from logits that exist. ``naive`` is ``kl_div`` of ``log_softmax`` and ``softmax``. Each call
  gets its teacher's logits as a copy, which ours overwrites; the copy is timed on both sides.
- hidden: the same from hidden states of 256 and the two heads' weights, the heads' products included. Liger is the
  linear Jensen-Shannon loss of Liger-Kernel with ``beta=0``, the same divergence, in chunks of 256, not compiled, where
  it is installed (``benchmarks/requirements.txt``). ``agrees`` is the largest difference of a gradient from the naive
  one's, over its largest value; ``error`` the same from float64, in the hidden states of the first 64 tokens.
- attention: divergence of two attentions from queries and keys, beside the student's own
  ``scaled_dot_product_attention`` alone: 2 sequences of 1,024, 8 heads of 64.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import parser_for, quiet, seconds_in_rounds, show_figures, times_longer
from lightning_optim.errors import cause_of
from lightning_optim.functional import (
    QueriesAndKeys,
    attention_transfer_loss_from_queries,
    soft_target_loss_,
    soft_target_loss_from_hidden,
)

HIDDEN, CHUNK = 256, 256
EXACT = 64  # tokens whose gradient is computed in float64


def peak_of(call: Callable[[], object]) -> int:
    """Most bytes that were allocated at once during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    level = highest = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            highest = max(highest, level)
    return highest


def naive_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Soft-target loss as it is usually written."""
    return F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="sum") / len(student)


def measure_logits(tokens: int, vocabulary: int, rounds: int) -> dict[str, float]:
    """Memory and time of the loss from logits."""
    student = torch.randn(tokens, vocabulary).mul_(3.0).requires_grad_()
    teacher, one = torch.randn(tokens, vocabulary).mul_(3.0), 4.0 * tokens * vocabulary

    @torch.enable_grad()
    def side(loss: Callable[[Tensor, Tensor], Tensor], held: list[Tensor]) -> None:
        student.grad = None
        loss(student, held.pop()).backward()  # what nobody else holds may be overwritten and given away

    losses = {"ours": soft_target_loss_, "naive": naive_loss}
    memory = {}
    for name, loss in losses.items():
        held = [teacher.clone()]
        student.grad = None
        memory[name] = peak_of(lambda loss=loss, held=held: side(loss, held)) / one
    calls = {name: (lambda loss=loss: side(loss, [teacher.clone()])) for name, loss in losses.items()}
    times = seconds_in_rounds(calls, rounds)
    return {
        "kl_logits_memory": memory["ours"],
        "kl_logits_memory_naive": memory["naive"],
        "kl_logits_speedup": times_longer(times["naive"], times["ours"]),
    }


def liger_loss() -> Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], Tensor]:
    """Liger-Kernel's loss with the signature of ours.

    Raises:
        ImportError: If it is not installed.
    """
    function = importlib.import_module("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction

    def loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
        labels = torch.zeros(len(student[0]), dtype=torch.long)
        settings = (0.0, 1.0, 0.0, -100, 1.0, False, CHUNK)  # the soft loss alone, beta 0
        found: Tensor = function.apply(*student, *teacher, labels, None, None, *settings)
        return found

    return loss


def measure_hidden(tokens: int, vocabulary: int, rounds: int) -> dict[str, Any]:
    """Memory and time of the loss from hidden states."""
    student = (torch.randn(tokens, HIDDEN).requires_grad_(), torch.randn(vocabulary, HIDDEN).mul_(0.2).requires_grad_())
    teacher = (torch.randn(tokens, HIDDEN), torch.randn(vocabulary, HIDDEN).mul_(0.2))
    losses: dict[str, Callable[..., Tensor]] = {
        "ours": soft_target_loss_from_hidden,
        "naive": lambda mine, other: naive_loss(mine[0] @ mine[1].T, other[0] @ other[1].T),
    }
    found: dict[str, Any] = {}
    try:
        losses["liger"] = liger_loss()
    except ImportError as error:
        found["liger_missing"] = cause_of(error)

    @torch.enable_grad()
    def side(loss: Callable[..., Tensor]) -> None:
        for tensor in student:
            tensor.grad = None
        loss(student, teacher).backward()

    memory, gradients = {}, {}
    for name, loss in losses.items():
        student[0].grad = student[1].grad = None
        memory[name] = peak_of(lambda loss=loss: side(loss)) / (4.0 * tokens * vocabulary)
        gradients[name] = [each.grad for each in student if each.grad is not None]
    times = seconds_in_rounds({name: (lambda loss=loss: side(loss)) for name, loss in losses.items()}, rounds)
    for name in losses.keys() - {"ours"}:
        found[f"kl_hidden_memory_{name}"] = memory[name]
    differences = [_difference(*pair) for pair in zip(gradients["ours"], gradients["naive"], strict=True)]
    exact = _exact_gradient(student, teacher)
    return found | {
        "kl_hidden_memory": memory["ours"],
        "kl_hidden_speedup": times_longer(times["naive"], times["ours"]),
        "kl_hidden_speedup_over_liger": times_longer(times["liger"], times["ours"]) if "liger" in times else None,
        "kl_hidden_agrees": max(differences),
        "kl_hidden_error": _difference(gradients["ours"][0][:EXACT], exact),
        "kl_hidden_error_naive": _difference(gradients["naive"][0][:EXACT], exact),
    }


@torch.enable_grad()
def _exact_gradient(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Gradient in the first hidden states, in float64: it does not depend on the others."""
    tokens = len(student[0])
    mine, other = ((states[:EXACT].detach().double(), head.detach().double()) for states, head in (student, teacher))
    leaf = mine[0].requires_grad_()
    loss = naive_loss(leaf @ mine[1].T, other[0] @ other[1].T) * (EXACT / tokens)
    return torch.autograd.grad(loss, leaf)[0]


def _difference(gradient: Tensor, reference: Tensor) -> float:
    return float((gradient - reference).abs().max() / reference.abs().max())


def measure_attention(rounds: int, batch: int = 2, heads: int = 8, length: int = 1024) -> dict[str, float]:
    """Time of the student's attention with the divergence from a teacher's, over the attention alone."""
    query, key, value = (torch.randn(batch, heads, length, 64).requires_grad_() for _ in range(3))
    teacher = QueriesAndKeys(torch.randn(batch, heads, length, 64), torch.randn(batch, heads, length, 64))

    @torch.enable_grad()
    def side(*, transfers: bool) -> None:
        query.grad = key.grad = value.grad = None
        loss = F.scaled_dot_product_attention(query, key, value).square().mean()
        if transfers:
            loss = loss + attention_transfer_loss_from_queries(QueriesAndKeys(query, key), teacher)
        loss.backward()

    calls = {"plain": lambda: side(transfers=False), "ours": lambda: side(transfers=True)}
    memory = {name: peak_of(call) / (4.0 * batch * heads * length**2) for name, call in calls.items()}
    times = seconds_in_rounds(calls, rounds)
    return {
        "attention_kl_ratio": times_longer(times["ours"], times["plain"]),
        "attention_kl_memory": memory["ours"] - memory["plain"],
    }


def measure(tokens: int = 4096, vocabulary: int = 32768, rounds: int = 5) -> Mapping[str, Any]:
    """Figures of the three kernels."""
    torch.manual_seed(0)
    return {
        **measure_logits(tokens, vocabulary, rounds),
        **measure_hidden(tokens, vocabulary, rounds),
        **measure_attention(rounds),
    }


def main() -> None:
    """Measure, print a table and, as the last line, one JSON object."""
    parser = parser_for(__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side")
    options = parser.parse_args()
    quiet()
    found = measure(options.tokens, options.vocabulary, options.rounds)
    show_figures("Kernels of distillation", found)
    print(json.dumps({"benchmark": "distillation_kernels", "torch": torch.__version__, **found}))


if __name__ == "__main__":
    main()
