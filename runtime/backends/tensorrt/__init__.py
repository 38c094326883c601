"""TensorRT and TensorRT-RTX: what the two have in common, and the backend that runs their engines."""
