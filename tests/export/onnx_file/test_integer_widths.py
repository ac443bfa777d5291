import types

import onnxruntime

from lightning_optim.export.onnx_file import integer_widths
from lightning_optim.export.onnx_file.integer_widths import narrowest_integers


def test_two_bits_where_the_runtime_has_them():
    has_them = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 24)
    assert narrowest_integers() == (2 if has_them else 4)


def test_four_bits_where_a_model_of_two_is_refused(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("unknown type 26")

    runtime = types.SimpleNamespace(SessionOptions=onnxruntime.SessionOptions, InferenceSession=refuse)
    known = integer_widths.require
    monkeypatch.setattr(integer_widths, "require", lambda name: runtime if name == "onnxruntime" else known(name))
    assert narrowest_integers.__wrapped__() == 4
