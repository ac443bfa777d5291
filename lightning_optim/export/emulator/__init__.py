"""Emulator of ONNX Runtime's integer kernels, to the bit."""
