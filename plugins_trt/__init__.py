"""The scans' kernels in CUDA and C++, TensorRT's plugins and ONNX Runtime's operators around them, and a binding."""

from videossm.plugins_trt.library import ScanLibrary
from videossm.plugins_trt.params import GatedDeltaParams, SelectiveScanParams

__all__ = ["GatedDeltaParams", "ScanLibrary", "SelectiveScanParams"]
