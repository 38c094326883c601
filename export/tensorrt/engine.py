"""One ONNX graph becomes one serialised engine: with a bar that shows how far it is, and ended by Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from videossm.export.tensorrt.options import TensorRtOptions
from videossm.export.tensorrt.phases import Phases, monitor_of
from videossm.export.tensorrt.timing_cache import read_timings, write_timings
from videossm.export.tensorrt.worker import in_thread
from videossm.runtime.backends.tensorrt.module import Log
from videossm.runtime.backends.tensorrt.network import attentions_of, parse_network
from videossm.runtime.errors import BackendError
from videossm.runtime.manifest import EngineSpec

# (total, unit) -> a bar, as `videossm.runtime.cli.progress`
Progress = Callable[[int, str], AbstractContextManager[Any]]

PERCENT = 100
DTYPES = {  # TensorRT's name of each of a manifest's
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
}


class EngineBuilder:
    """Builds engines one after the other, all with the same options."""

    def __init__(self, trt: Any, options: TensorRtOptions, progress: Progress) -> None:
        self._trt, self._options, self._progress = trt, options, progress
        self._log = Log(trt)
        self._builder = trt.Builder(self._log.logger)
        if options.plugins is not None:
            _load_plugins(trt, options.plugins)

    def build(
        self, name: str, spec: EngineSpec, graph: Path, engine: Path, has_plugins: bool = False, tf32: bool = False
    ) -> bool:
        """Writes the engine `name` of the ONNX file `graph` to the file `engine`; with the plugins that it then needs.

        Returns whether each attention in it is one fused kernel. `tf32`: products of fp32 may read their factors
        with the 10 bits of TF32, and add them up in fp32.

        Raises BackendError, with TensorRT's reason, where it cannot be built or is not what `spec` says;
        KeyboardInterrupt when Ctrl-C ended it.
        """
        phases = Phases()
        with self._progress(PERCENT, "%") as bar:
            bar.set_description_str(name)
            serialized, fused = in_thread(
                lambda: self._serialized(name, spec, graph, phases, self._config(has_plugins, tf32)),
                lambda: bar.update(int(PERCENT * phases.fraction) - bar.n),
                phases.cancelled.set,
            )
            bar.update(PERCENT - bar.n)
        engine.write_bytes(memoryview(serialized))
        return fused

    def _serialized(self, name: str, spec: EngineSpec, graph: Path, phases: Phases, config: Any) -> tuple[Any, bool]:
        network, problems = parse_network(self._trt, self._builder, self._log, graph)
        if problems:
            raise BackendError(f"{name}: {'; '.join(problems)}; export the graph again")
        _check_tensors(self._trt, network, name, spec)
        config.progress_monitor = monitor = monitor_of(self._trt, phases)
        timings = self._options.timing_cache
        if timings is not None:
            read_timings(timings, config, self._log)
        serialized, fused = self._built(network, config, phases)
        del monitor  # it had to outlive the build
        if serialized is None:
            raise self._log.fail(f"{name}: cannot be built", "change the options or the precision")
        if timings is not None:
            write_timings(timings, config, self._log)
        return serialized, fused

    def _built(self, network: Any, config: Any, phases: Phases) -> tuple[Any, bool]:
        """The engine, or None, and whether every attention in it is one fused kernel.

        An attention that may become its parts can lose its kernel without a word. So none may at first but those in
        fp32, which has no kernel. Where that cannot be built, as with heads of other sizes than the kernels have, all
        may in a second try.
        """
        attentions = attentions_of(self._trt, network)
        unfused = [each for each in attentions if each.get_input(0).dtype == self._trt.DataType.FLOAT]
        for attention in unfused:
            attention.decomposable = True
        serialized = self._builder.build_serialized_network(network, config)
        if serialized is None and len(unfused) < len(attentions) and not phases.cancelled.is_set():
            unfused = attentions
            for attention in attentions:
                attention.decomposable = True
            serialized = self._builder.build_serialized_network(network, config)
        return serialized, not unfused

    def _config(self, has_plugins: bool = False, tf32: bool = False) -> Any:
        """No optimisation profile: shapes are static. An input with a dynamic size would need one here."""
        trt, options = self._trt, self._options
        config = self._builder.create_builder_config()
        if options.gpu_arch:
            config.num_compute_capabilities = len(options.gpu_arch)
            for index, arch in enumerate(options.gpu_arch):
                config.set_compute_capability(getattr(trt.ComputeCapability, arch.replace("sm_", "SM")), index)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
        if options.builder_level is not None:
            config.builder_optimization_level = options.builder_level
        if options.profiling_verbosity is not None:
            config.profiling_verbosity = getattr(trt.ProfilingVerbosity, options.profiling_verbosity.upper())
        if options.hardware_compatible is not None:
            level = options.hardware_compatible.upper()
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        if has_plugins:
            config.plugins_to_serialize = [str(options.plugins)]
        if not tf32:  # it is on by default
            config.clear_flag(trt.BuilderFlag.TF32)
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION") and not options.weight_streaming:
            # TensorRT-RTX captures no CUDA graph without it, and streams no weights with it.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        for flag in _flags(options, has_plugins):
            config.set_flag(getattr(trt.BuilderFlag, flag))
        return config


@cache
def _load_plugins(trt: Any, library: Path) -> None:
    """Once in a process, for all its builders: the one that checks the graphs beforehand finds the plugins, too."""
    log = Log(trt)
    registry = trt.get_plugin_registry()
    if registry.load_library(str(library)) is None:
        raise log.fail(f"--plugins: {library} cannot be loaded", "build it with `make plugins`")


def _flags(options: TensorRtOptions, has_plugins: bool) -> list[str]:
    """Stripped weights come back as they were, which REFIT_IDENTICAL lets TensorRT count on; REFIT takes any others.
    Only a version-compatible engine brings plugins along."""
    flags = []
    if options.refit:
        flags.append("REFIT")
    elif options.strip_weights:
        flags.append("REFIT_IDENTICAL")
    if options.strip_weights:
        flags.append("STRIP_PLAN")
    if options.weight_streaming:
        flags.append("WEIGHT_STREAMING")
    if options.version_compatible or has_plugins:
        flags.append("VERSION_COMPATIBLE")
    return flags


def _check_tensors(trt: Any, network: Any, name: str, spec: EngineSpec) -> None:
    """Raises BackendError unless the network's inputs and outputs are those of `spec`: names, types, shapes."""
    for kind, tensors, found in (
        ("input", spec.inputs, [network.get_input(index) for index in range(network.num_inputs)]),
        ("output", spec.outputs, [network.get_output(index) for index in range(network.num_outputs)]),
    ):
        expected = {tensor.name: (getattr(trt.DataType, DTYPES[tensor.dtype]), tensor.shape) for tensor in tensors}
        got = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in found}
        for tensor in sorted(expected.keys() | got.keys()):
            if got.get(tensor) != expected.get(tensor):
                raise BackendError(
                    f"{name}: {kind} {tensor}: got {got.get(tensor, 'none')}, expected {expected.get(tensor, 'none')}, "
                    "as the manifest says; export the plan again"
                )
