import pytest

from lightning_optim.export.runtime.find import find_target
from lightning_optim.export.runtime.onnxruntime import ONNXRuntime


def test_a_name_is_the_target_with_its_defaults_and_a_target_is_itself():
    assert find_target("onnxruntime") == ONNXRuntime()
    mine = ONNXRuntime(packed=False)
    assert find_target(mine) is mine


@pytest.mark.parametrize("name", ["onnx", "base", "find", 3])
def test_another_name_lists_those_that_there_are(name):
    with pytest.raises(ValueError, match="'onnxruntime', 'openvino', 'tensorrt'"):
        find_target(name)
