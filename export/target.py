"""What a plan is made for: its precision, backend and lowering. What cannot be made is refused before anything is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from videossm.calib.options import QUANTISED
from videossm.export.tensorrt.options import BUILDING_GPUS, TensorRtOptions
from videossm.runtime.backends import NATIVE_LIBRARY, NATIVE_VARIABLE
from videossm.runtime.backends.session import session_options
from videossm.runtime.backends.tensorrt.module import MODULES
from videossm.runtime.backends.tensorrt.preflight import check_build
from videossm.runtime.errors import BackendError, UserError, require_none
from videossm.runtime.machine import BACKENDS, probe_machine

LOWERINGS = ("contrib", "standard", "native", "plugin")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8")
OPSETS = range(23, 26)
LATER_RUNTIME = (1, 24)  # since when ONNX Runtime has LinearAttention, and Q/DQ of opset 23


@dataclass(frozen=True)
class ExportTarget:
    """As given, `lowering` None where not. `building`: how TensorRT builds, if it does."""

    precision: str
    backend: str
    lowering: str | None
    building: TensorRtOptions
    opset: int = OPSETS[0]

    @property
    def builds(self) -> bool:
        """Whether engines are built, of graphs that ONNX Runtime verifies and calibrates before."""
        return self.backend in MODULES

    @property
    def graph_lowering(self) -> str:
        """That of the ONNX graphs. `contrib` needs an operator of the ONNX Runtime that runs them: likely this one."""
        if self.builds:
            return "standard"
        return self.lowering or ("contrib" if has_later_runtime() else "standard")

    @property
    def plan_lowering(self) -> str:
        """That of the plan: with plugins, engines with scans are built of other graphs than ONNX Runtime's."""
        if not self.builds:
            return self.graph_lowering
        return self.lowering or ("plugin" if self.building.plugins else "standard")

    def check(self) -> None:
        """Raises UserError, BackendError or PreflightError for a target that export cannot make here."""
        for option, got, known in (
            ("--precision", self.precision, PRECISIONS),
            ("--backend", self.backend, BACKENDS),
            ("--lowering", self.plan_lowering, LOWERINGS),
        ):
            if got not in known:
                raise UserError(f"{option}: got {got}, expected one of {', '.join(known)}; choose one")
        if self.opset not in OPSETS:
            raise UserError(f"--opset: got {self.opset}, expected {OPSETS[0]} to {OPSETS[-1]}; choose one")
        if self.precision in QUANTISED and not has_later_runtime():
            later = ".".join(map(str, LATER_RUNTIME))
            raise BackendError(
                f"--precision: got {self.precision} with an ONNX Runtime that cannot run it, expected {later} or "
                "later; upgrade onnxruntime, which needs Python 3.11, or choose fp32"
            )
        self.check_backend()

    def check_backend(self) -> None:
        """The part of `check` that counts for graphs that are there, too."""
        machine = probe_machine([self.backend], BUILDING_GPUS if self.builds else ())  # a graph needs none to be made
        lowering = self.plan_lowering
        self.building.check(self.backend, machine)
        if not self.builds:
            if lowering == "plugin":
                raise UserError(
                    "--lowering: got plugin with onnxruntime, expected contrib, standard or native; choose one"
                )
            if lowering == "native":
                self._check_native()
            return
        require_none(check_build(self.backend, self.precision, self.building.gpu_arch, lowering, machine))
        if (lowering == "plugin") != (self.building.plugins is not None):
            raise UserError(
                f"--lowering: got {lowering} with{'' if self.building.plugins else 'out'} --plugins, expected plugin "
                "and --plugins, or neither; change it"
            )

    def _check_native(self) -> None:
        """That the library is there, as the export runs what it made, and that something can run the plan."""
        if not os.environ.get(NATIVE_VARIABLE):
            raise UserError(
                f"--lowering: got native without {NATIVE_VARIABLE} in the environment, expected the path of "
                f"{NATIVE_LIBRARY} there; make native"
            )
        session_options(self.precision, 1)  # loads it
        if self.precision == "bf16":
            raise UserError(
                "--precision: got bf16 with --lowering native, expected another, as ONNX Runtime has no bf16 on a CPU; "
                "choose fp16 or fp32"
            )


def has_later_runtime() -> bool:
    from onnxruntime import __version__

    major, minor, *_ = __version__.split(".")
    return (int(major), int(minor)) >= LATER_RUNTIME
