"""ONNX files: written from any module, and loaded into a session."""
