"""From a plan of ONNX graphs to one of engines: TensorRT and TensorRT-RTX, through one builder."""
