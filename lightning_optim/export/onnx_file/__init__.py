"""Any module to one ONNX file, and back into a session."""
