import pytest

from lightning_optim.export import ONNXRuntime
from lightning_optim.export.runtime.find import find_runtime


def test_a_name_is_the_runtime_with_its_defaults_and_a_runtime_is_itself():
    assert find_runtime("onnxruntime") == ONNXRuntime()
    mine = ONNXRuntime(packed=False)
    assert find_runtime(mine) is mine


@pytest.mark.parametrize("name", ["onnx", "base", "find", 3])
def test_another_name_lists_those_that_there_are(name):
    with pytest.raises(ValueError, match="'onnxruntime', 'openvino', 'tensorrt'"):
        find_runtime(name)
