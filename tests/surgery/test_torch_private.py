"""Private names of torch are read in one file, and the installed torch has each of them."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import lightning_optim
from lightning_optim.surgery import torch_private
from lightning_optim.surgery.torch_private import (
    COMPILED_CALL,
    COMPILED_CHILD,
    arguments_of,
    backend_error,
    backend_of,
    can_compile,
    checkpoints_followed,
    checkpoints_ignored,
    compilation_errors,
    compute_weight,
    frame_compiler,
    function_of,
    graphs_uncut_by_ddp,
    has_too_many_graphs,
    in_place_version,
    is_call_compiled,
    is_compiled_wrapper,
    is_recomputing,
    is_transforming,
    never_compiled,
    plain_call,
    quantized_operators,
    refresh_flat_weights,
    schema_name,
    uncompiled,
    without_torch_functions,
)

PACKAGE = Path(lightning_optim.__file__).parent
HOME = PACKAGE / "surgery/torch_private.py"


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def pruned_by_torch():
    return next(iter(prune.identity(nn.Linear(1, 1), "weight")._forward_pre_hooks.values()))


OWNERS = {
    "_orig_mod": lambda: torch.compile(nn.Linear(1, 1), backend="eager"),
    "_compiled_call_impl": lambda: nn.Linear(1, 1),
    "_call_impl": lambda: nn.Linear(1, 1),
    "_dynamo": lambda: torch,
    "_stance": lambda: torch._dynamo.eval_frame,
    "_version": lambda: torch.ones(1),
    "_C": lambda: torch,
    "_current_graph_task_id": lambda: torch._C,
    "_functorch": lambda: torch._C,
    "_checkpoint_without_reentrant_generator": lambda: torch.utils.checkpoint,
    "_forward_cls": lambda: Twice.apply(torch.ones(1, requires_grad=True)).grad_fn,
    "_init_flat_weights": lambda: nn.LSTM(1, 1),
    "_schema": lambda: torch.ops.aten.add.Tensor,
    "_BatchNorm": lambda: nn.modules.batchnorm,
    "_NormBase": lambda: nn.modules.batchnorm,
    "_ConvNd": lambda: nn.modules.conv,
    "_ConvTransposeNd": lambda: nn.modules.conv,
    "_DropoutNd": lambda: nn.modules.dropout,
    "_pytree": lambda: torch.utils,
    "_python_dispatch": lambda: torch.utils,
    "_ops": lambda: torch,
    "_subclasses": lambda: torch,
    "_WeightNorm": lambda: parametrizations,
    "_tensor_name": pruned_by_torch,
    "_decomposed": lambda: quantized_operators() and torch.ao.quantization.fx,
}

OF_SOME_VERSIONS = {
    "_checkpoint_without_reentrant_generator_impl",
    "_guards_code",
    "_torchdynamo_orig_backend",
    "_torchdynamo_orig_callable",
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def read(tree):
    """Private names of torch that a file reads: parts of an import, attributes below ``torch``, and those of OWNERS."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found |= {*node.module.split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            found |= {part for name in parts if name[0] == "torch" for part in name}
        elif isinstance(node, ast.Attribute):
            if node.attr in {*OWNERS, *OF_SOME_VERSIONS} or root_of(node) == "torch":
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and node.value in {*OWNERS, *OF_SOME_VERSIONS}:
            found.add(node.value)
    return {name for name in found if is_private(name) and not name.startswith("_foreach_")}


def root_of(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def test_no_other_file_reads_a_private_name_of_torch():
    found = {
        str(path.relative_to(PACKAGE)): sorted(names)
        for path in PACKAGE.rglob("*.py")
        if path != HOME and (names := read(ast.parse(path.read_text())))
    }
    assert not found


@pytest.mark.parametrize("name", OWNERS)
def test_installed_torch_has_the_private_name(name):
    assert hasattr(OWNERS[name](), name)


def test_every_name_of_the_file_is_tried():
    assert read(ast.parse(HOME.read_text())) == {*OWNERS, *OF_SOME_VERSIONS}


def test_what_is_exported_is_there():
    assert all(hasattr(torch_private, name) for name in torch_private.__all__)
    assert isinstance(nn.SyncBatchNorm(2), torch_private.BatchNorm)
    assert isinstance(nn.InstanceNorm1d(2), torch_private.NormBase)
    assert isinstance(nn.ConvTranspose1d(2, 2, 1), torch_private.Convolution)
    assert not isinstance(nn.Conv1d(2, 2, 1), torch_private.TransposedConvolution)
    assert isinstance(nn.Dropout2d(), torch_private.DropoutLayer)


def my_backend(graph, inputs):
    return graph.forward


def test_a_wrapper_of_torch_compile_is_looked_through():
    network = nn.Linear(1, 1)
    wrapper = torch.compile(network, backend=my_backend)
    assert is_compiled_wrapper(wrapper)
    assert not is_compiled_wrapper(network)
    assert uncompiled(wrapper) is network
    assert uncompiled(network) is network
    assert getattr(wrapper, COMPILED_CHILD) is network
    assert backend_of(frame_compiler(wrapper)).compiler_fn is my_backend
    assert frame_compiler(network) is None


def test_a_module_compiled_in_place_keeps_its_plain_call():
    network = nn.Linear(1, 1)
    assert not is_call_compiled(network)
    network.compile(backend=my_backend)
    assert is_call_compiled(network)
    assert callable(getattr(network, COMPILED_CALL))
    assert plain_call(network) == network._call_impl
    assert backend_of(frame_compiler(network)).compiler_fn is my_backend


def test_nothing_is_compiled_where_compilation_is_off():
    assert can_compile()
    with torch.compiler.set_stance("force_eager"):
        assert not can_compile()
    with torch._dynamo.config.patch(disable=True):
        assert not can_compile()


def test_ddp_cuts_no_graph_in_its_context():
    before = torch._dynamo.config.optimize_ddp
    with graphs_uncut_by_ddp():
        assert torch._dynamo.config.optimize_ddp is False
    assert torch._dynamo.config.optimize_ddp == before


def test_errors_of_compilation():
    def refuse(graph, inputs):
        raise ValueError("refused")

    with pytest.raises(compilation_errors()) as caught:
        torch.compile(lambda x: x + 1, backend=refuse)(torch.ones(1))
    assert str(backend_error(caught.value)) == "refused"
    assert not has_too_many_graphs(caught.value)
    assert backend_error(error := ValueError()) is error

    add = torch.compile(lambda x: x + 1, backend="eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(compilation_errors()) as caught:
        [add(torch.ones(size)) for size in (2, 3)]
    assert has_too_many_graphs(caught.value)


def test_a_function_that_is_never_compiled_breaks_the_graph():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    helper = never_compiled(lambda x: x * 2)
    assert torch.compile(lambda x: helper(x + 1) + 1, backend=count)(torch.ones(1)) == 5
    assert len(graphs) == 2


def test_changes_in_place_are_counted():
    tensor = torch.ones(2)
    before = in_place_version(tensor)
    tensor[:1].add_(1)
    assert in_place_version(tensor) == before + 1


def test_a_running_transform_is_seen():
    found = []

    def square(x):
        found.append(is_transforming())
        return x**2

    torch.vmap(square)(torch.ones(1))
    torch.func.grad(square)(torch.tensor(1.0))
    assert found == [True, True]
    assert not is_transforming()


class Watch(torch.overrides.TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


class Seen(torch.Tensor):
    calls = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        Seen.calls += 1
        return super().__torch_function__(function, types, args, kwargs)


def test_no_operator_is_seen_in_the_context():
    with Watch() as watch, without_torch_functions():
        torch.ones(2).add(1)
        torch.ones(2).as_subclass(Seen).add(1)
    assert (watch.calls, Seen.calls) == (0, 0)


def test_the_function_of_a_node():
    x = torch.ones(1, requires_grad=True)
    assert function_of(Twice.apply(x).grad_fn) is Twice
    assert function_of((x * 2).grad_fn) is object
    assert function_of(None) is object


def test_a_recurrent_layer_reads_its_weights_again():
    layer = nn.RNN(1, 1)
    layer.weight_ih_l0 = nn.Parameter(torch.zeros(1, 1))
    refresh_flat_weights(layer)
    assert layer._flat_weights[0] is layer.weight_ih_l0


def test_schemas_and_namespaces_of_operators():
    add = torch.ops.aten.add.Tensor
    assert schema_name(add) == "aten::add"
    assert [argument.name for argument in arguments_of(add)] == ["self", "other", "alpha"]
    assert quantized_operators().quantize_per_tensor.default


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: weight_norm(nn.Linear(2, 2)), "weight_v"),
        (lambda: spectral_norm(nn.Linear(2, 2)), "weight_orig"),
        (lambda: prune.identity(nn.Linear(2, 2), "weight"), "weight_orig"),
    ],
)
def test_a_hook_computes_the_weight_before_the_next_call(make, key):
    layer = make().eval()
    with torch.no_grad():
        layer.get_parameter(key)[0, 0] = 0.0
    vectors = {name: value.clone() for name, value in layer.named_buffers()}
    compute_weight(layer)
    found = layer.weight.clone()
    layer(torch.ones(1, 2))
    assert found[0, 0] == 0.0
    torch.testing.assert_close(found, layer.weight)
    assert all(torch.equal(value, vectors[name]) for name, value in layer.named_buffers())


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_checkpointed_is_followed_into_the_backward_and_no_further(reentrant):
    seen, x = [], torch.ones(2, requires_grad=True)

    def function(y):
        seen.append(is_recomputing())
        return y.exp().exp()

    def again(function, args, detached):
        assert args[0] is x
        assert detached is reentrant
        return lambda *args: seen.append("again") or function(*args)

    with checkpoints_followed(again):
        y = checkpoint(function, x, use_reentrant=reentrant)
    checkpoint(torch.exp, x, use_reentrant=reentrant)
    y.sum().backward()
    assert seen == [False, "again", True]
    assert torch.equal(x.grad, torch.ones(2).exp().exp() * torch.e)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_that_are_ignored_run_once(reentrant):
    seen, x = [], torch.ones(2, requires_grad=True)

    def function(y):
        seen.append(torch.is_grad_enabled())
        return y.exp()

    with checkpoints_ignored():
        checkpoint(function, x, use_reentrant=reentrant).sum().backward()
    assert seen == [True]
    assert not is_recomputing()
