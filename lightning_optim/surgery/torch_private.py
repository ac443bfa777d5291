"""Private names of torch: all that this package uses, tried on torch 2.8.0, 2.9.1, 2.13.0 and 2.14.1.

No other file reads one, so that after a new release of torch one file is to be compared with it. Dictionaries of a
module (``_parameters``, ``_buffers``, ``_modules``, its hooks) and ``torch._foreach_*`` are not counted: they have
been the same for years. ``torch._dynamo`` is loaded when it is first needed, since that takes a second.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import Node
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.modules.conv import _ConvTransposeNd as TransposedConvolution
from torch.nn.modules.dropout import _DropoutNd as DropoutLayer
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = [  # what stands here under torch's own name, or without its underscore
    "BatchNorm",
    "Convolution",
    "DropoutLayer",
    "FakeTensor",
    "FakeTensorMode",
    "NormBase",
    "OpOverload",
    "TransposedConvolution",
    "pytree",
]

# Containers.


def number_parts() -> None:
    """Number the parts of containers that were registered without names for them: the exporter asks for names."""
    for kind, node in [*pytree.SUPPORTED_NODES.items()]:
        if node.flatten_with_keys_fn is None:
            pytree.SUPPORTED_NODES[kind] = node._replace(flatten_with_keys_fn=_numbered(node.flatten_fn))


def _numbered(flatten: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def flatten_with_keys(value: Any) -> Any:
        parts, context = flatten(value)
        return [(pytree.SequenceKey(place), part) for place, part in enumerate(parts)], context

    return flatten_with_keys


# Attention.


@contextmanager
def causal_masks_unrecognized() -> Iterator[None]:
    """Let PyTorch's transformer layers apply a mask without reading whether it is the causal one.

    They read it for a faster kernel alone; what depends on a tensor's values cannot be captured as a graph.
    """
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


# torch.compile.

COMPILED_CHILD = "_orig_mod"
"""Under what name the wrapper of ``torch.compile`` holds the module that it compiles."""

COMPILED_CALL = "_compiled_call_impl"
"""Attribute in which ``nn.Module.compile`` leaves the compiled call; ``None`` in a module that is not compiled."""

ISOLATES_GRAPHS = "isolate_recompiles" in inspect.signature(torch.compile).parameters
"""Whether ``torch.compile`` can keep a network's graphs apart from those of its class, as from torch 2.13 on."""


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Whether a module is the wrapper that ``torch.compile`` has put around another one."""
    return isinstance(module, torch._dynamo.OptimizedModule)


def uncompiled(module: nn.Module) -> nn.Module:
    """Module below a wrapper of ``torch.compile``, if there is one; the module itself otherwise."""
    return module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module


def is_call_compiled(module: nn.Module) -> bool:
    """Whether ``nn.Module.compile`` has compiled the module's call."""
    return module._compiled_call_impl is not None


def plain_call(module: nn.Module) -> Callable[..., Any]:
    """Call of a module, hooks included, past what ``nn.Module.compile`` has compiled."""
    return module._call_impl


@contextmanager
def call_wrapped(module: nn.Module, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Context in which ``wrapper(original, *args, **kwargs)`` takes a module's calls, before any of its hooks.

    A compiled module stays compiled: ``original`` is what it would have run.

    Example:
        >>> layer = nn.ReLU()
        >>> with call_wrapped(layer, lambda original, x: original(x) + 1):
        ...     layer(torch.ones(1))
        tensor([2.])
        >>> layer(torch.ones(1))
        tensor([1.])
    """
    before = vars(module).get(COMPILED_CALL)
    original = module._call_impl if before is None else before
    object.__setattr__(module, COMPILED_CALL, partial(wrapper, original))
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(module, COMPILED_CALL)  # the class says that there is none
        else:
            object.__setattr__(module, COMPILED_CALL, before)


def frame_compiler(module: nn.Module) -> Any:
    """Callback that compiles the frames of a module's own compilation; ``None`` if the module has none."""
    if isinstance(module, torch._dynamo.OptimizedModule):
        return module.dynamo_ctx.callback
    if module._compiled_call_impl is not None:  # by Module.compile, which keeps its backend in a closure alone
        return inspect.getclosurevars(module._compiled_call_impl).nonlocals.get("callback")
    return None


def backend_of(frame_compiler: Callable[..., Any]) -> Callable[..., Any]:
    """Backend of ``torch.compile`` inside a callback that compiles frames."""
    backend = frame_compiler
    for name in ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable"):  # the latter up to torch 2.8
        while (inner := getattr(backend, name, None)) is not None:
            backend = inner
    return backend


def can_compile() -> bool:
    """Whether ``torch.compile`` compiles at this moment, and does not run what it is given as it is."""
    is_asked = torch._dynamo.eval_frame._stance.stance == "default" and not torch._dynamo.config.disable
    return is_asked and not is_in_torch_dispatch_mode()


def never_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Function that runs in Python wherever compiled code calls it."""
    plain: Callable[..., Any] = torch._dynamo.disable(function)  # type: ignore[no-untyped-call]  # torch's
    return plain


@contextmanager
def graphs_uncut_by_ddp() -> Iterator[None]:
    """Context in which a compiled graph is not cut at the buckets of DDP."""
    with torch._dynamo.config.patch(optimize_ddp=False):
        yield


def compilation_errors() -> tuple[type[Exception], ...]:
    """Errors with which ``torch.compile`` refuses a function; the last kind says that it has too many graphs."""
    errors = torch._dynamo.exc
    return errors.TorchDynamoException, errors.FailOnRecompileLimitHit


def has_too_many_graphs(error: Exception) -> bool:
    """Whether the limit of recompilations was the reason of a refusal."""
    return isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit)


def backend_error(error: Exception) -> Exception:
    """Error of the backend inside a refusal of ``torch.compile``; the refusal itself if the backend was not asked."""
    return error.inner_exception if isinstance(error, torch._dynamo.exc.BackendCompilerFailed) else error


# Tensors, gradients and operators.


def in_place_version(tensor: Tensor) -> int:
    """Number of changes in place that torch has counted on a tensor's memory; inference tensors have none."""
    return tensor._version


def is_transforming() -> bool:
    """Whether a transform of ``torch.func`` is running, such as ``vmap`` or ``grad``.

    Example:
        >>> found = []
        >>> torch.vmap(lambda x: (found.append(is_transforming()), x)[1])(torch.ones(1))
        tensor([1.])
        >>> found, is_transforming()
        ([True], False)
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def without_torch_functions() -> AbstractContextManager[None]:
    """Context in which no ``TorchFunctionMode`` or tensor subclass sees an operator."""
    context: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return context


def function_of(node: Node | None) -> type:
    """Class of the ``autograd.Function`` that made a node of the backward graph; ``object`` for torch's own."""
    return getattr(node, "_forward_cls", object)


def refresh_flat_weights(module: nn.RNNBase) -> None:
    """Let a recurrent layer, which holds its weights in a list as well, read them from its attributes again."""
    module._init_flat_weights()


def refresh_repeated_padding(module: Convolution) -> None:
    """Let a convolution, which holds its padding in the form of ``F.pad`` as well, read it from its attributes again.

    Example:
        >>> layer = nn.Conv2d(1, 1, 5, padding=2, padding_mode="circular")
        >>> layer.kernel_size, layer.padding = (3, 3), (1, 1)
        >>> refresh_repeated_padding(layer)
        >>> layer(torch.ones(1, 1, 4, 4)).shape[2:]
        torch.Size([2, 2])
    """
    if module.padding == "same":
        reach = [step * (size - 1) for step, size in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [side for each in reversed(reach) for side in (each // 2, each - each // 2)]
    elif module.padding == "valid":
        sides = [0, 0] * len(module.kernel_size)
    else:
        own: Sequence[int] = module.padding  # type: ignore[assignment]  # the words are those above
        sides = [side for side in reversed(own) for _ in range(2)]
    module._reversed_padding_repeated_twice = type(module._reversed_padding_repeated_twice)(sides)


def arguments_of(operator: OpOverload) -> list[Any]:
    """Arguments in the schema of an operator, in order."""
    return list(operator._schema.arguments)


def schema_name(operator: OpOverload) -> str:
    """Name in the schema of an operator, such as ``"aten::add"``."""
    return operator._schema.name


def drop_guards(program: torch.export.ExportedProgram) -> None:
    """Forget which sizes a captured program checks when it runs: torch 2.9 cannot decompose one that checks them."""
    if "_guards_code" in vars(program):  # from torch 2.9 on
        program._guards_code = []


def quantized_operators() -> Any:
    """Namespace of the ``quantized_decomposed`` operators, which exist once their module is imported."""
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed


# Activation checkpointing.

Again = Callable[[Callable[..., Any], tuple[Any, ...], bool], Callable[..., Any]]
"""Takes a function that is about to run checkpointed, its positional arguments, and whether these come back detached;
returns what is to run in its place inside the backward."""

_GENERATOR = next(
    name
    for name in ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    if name in vars(torch.utils.checkpoint)  # the former from torch 2.14 on
)


def is_recomputing() -> bool:
    """Whether this runs inside a backward: a forward does so if it was checkpointed, and runs for the second time."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextmanager
def checkpoints_followed(again: Again) -> Iterator[None]:
    """Context in which ``again`` is asked what to run in the backward in place of a function that is checkpointed.

    It holds for every checkpoint of torch: those that a network calls, and those of transformers'
    ``gradient_checkpointing_enable``, of ``checkpoint_sequential`` and of FSDP's ``checkpoint_wrapper``.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> ran, x = [], torch.ones(2, requires_grad=True)
        >>> with checkpoints_followed(lambda function, *_: lambda *args: ran.append("again") or function(*args)):
        ...     y = checkpoint(torch.exp, x, use_reentrant=False)
        >>> y.sum().backward()
        >>> ran
        ['again']
    """
    home: Any = torch.utils.checkpoint
    reentrant, generator = home.CheckpointFunction, vars(home)[_GENERATOR]
    kinds = [parameter.kind for parameter in inspect.signature(generator).parameters.values()]
    is_spread = inspect.Parameter.VAR_POSITIONAL in kinds  # from torch 2.14 on, a tuple
    num_settings = kinds.index(inspect.Parameter.VAR_POSITIONAL) - 1 if is_spread else 0  # the first is the function

    def start(function: Callable[..., Any], *given: Any, **kwargs: Any) -> Any:
        args = given[num_settings:] if is_spread else given[0]
        return _unseen(generator(again(function, args, False), *given, **kwargs))

    with _checkpoints_replaced(_Reentrant(reentrant, again), start):
        yield


@contextmanager
def checkpoints_ignored() -> Iterator[None]:
    """Context in which a function that is checkpointed simply runs, so that a capture of it has its operators alone."""

    def start(*_: Any, **__: Any) -> Iterator[None]:
        yield

    with _checkpoints_replaced(_Plain, start):
        yield


@contextmanager
def _checkpoints_replaced(reentrant: Any, generator: Callable[..., Any]) -> Iterator[None]:
    home: Any = torch.utils.checkpoint
    names = ("CheckpointFunction", _GENERATOR)
    before = {name: vars(home)[name] for name in names}
    vars(home).update(zip(names, (reentrant, generator), strict=True))
    try:
        yield
    finally:
        vars(home).update(before)


def _unseen(steps: Iterator[None]) -> Iterator[None]:
    """Take the steps before and after a function that is checkpointed; no mode sees how its inputs are kept."""
    with without_torch_functions():
        next(steps)
    try:
        yield
    except BaseException as error:
        steps.throw(error)  # type: ignore[attr-defined]  # of a generator
        raise
    with without_torch_functions():
        next(steps, None)


class _Plain:
    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:  # torch's
        return function(*args)


class _Reentrant:  # no class of its own each time, which only the garbage collector would free
    """Stand-in for the function of reentrant checkpoints."""

    def __init__(self, original: Any, again: Again) -> None:
        self._original, self._again = original, again

    def apply(self, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:  # torch's
        """Run a function for the first time."""
        return self._original.apply(_FirstThen(function, self._again(function, args, True)), preserve, *args)


class _FirstThen:
    """Function that is one at its first call, and another one from then on."""

    def __init__(self, first: Callable[..., Any], then: Callable[..., Any]) -> None:
        self._next, self._then = first, then

    def __call__(self, *args: Any) -> Any:
        function, self._next = self._next, self._then
        return function(*args)


# Weights that are computed before each call.


def computes_weight_norm(step: object) -> bool:
    """Whether a parametrization or a hook is that of weight normalization."""
    return isinstance(step, (_WeightNorm, WeightNorm))


def weight_norm_dim(step: object) -> int:
    """Along which dimension a weight normalization has lengths; -1 if there is one length."""
    assert isinstance(step, (_WeightNorm, WeightNorm))
    return int(step.dim)


def computes_spectral_norm(hook: object) -> bool:
    """Whether a hook is that of spectral normalization."""
    return isinstance(hook, SpectralNorm)


def is_pruned_by_torch(hook: object) -> bool:
    """Whether a hook multiplies a weight by a mask, as ``torch.nn.utils.prune`` does."""
    return isinstance(hook, BasePruningMethod)


def compute_weight(module: nn.Module) -> None:
    """Let hooks that compute a module's weight before each call do so now; nothing else changes."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            vars(module)["weight"] = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm) and hook.name == "weight":
            vars(module)["weight"] = hook.compute_weight(module, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            vars(module)["weight"] = hook.apply_mask(module)  # type: ignore[no-untyped-call]  # torch's own
