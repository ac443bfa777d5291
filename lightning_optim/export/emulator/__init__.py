"""Emulator of ONNX Runtime's integer kernels, bit for bit."""
