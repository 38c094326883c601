"""From a PyTorch checkpoint to a plan: one ONNX graph an engine, with its scans lowered for a backend."""
