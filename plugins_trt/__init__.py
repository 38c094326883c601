"""The scans' kernels in CUDA and C++, the TensorRT plugins around them, and their binding for Python."""

from videossm.plugins_trt.library import ScanLibrary
from videossm.plugins_trt.params import GatedDeltaParams, SelectiveScanParams

__all__ = ["GatedDeltaParams", "ScanLibrary", "SelectiveScanParams"]
