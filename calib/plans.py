"""Plans of lower precision, made of an fp32 plan: graphs rewritten, all other files the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto, helper

from videossm.calib.calibration import Calibration, CalibrationError
from videossm.calib.graph import load_graph, load_weights
from videossm.calib.half import to_half
from videossm.calib.linears import Linear, Product, Skipped, find_linears, find_products
from videossm.calib.observers import Codes, weight_scales
from videossm.calib.options import HALF, QUANTISED
from videossm.calib.qdq import quantize, quantize_attention
from videossm.calib.smoothquant import smooth
from videossm.runtime import Plan
from videossm.runtime.errors import UserError
from videossm.runtime.graph_file import external_locations
from videossm.runtime.manifest import Manifest
from videossm.runtime.plan import write_manifest

INLINE_BYTES = 1 << 27  # of a graph's weights; more go to a file beside it
CALIBRATION_FILE = "calibration.json"


class PrecisionError(UserError):
    """A plan that cannot be made of this one."""


class Candidates(NamedTuple):
    """All that could be quantised, over the engines of a plan, and what never is."""

    linears: list[Linear]
    products: list[Product]
    skipped: list[Skipped]

    @property
    def engines(self) -> dict[str, tuple[str, ...]]:
        """Those that each layer is in, by its name: a layer of two engines is quantised in both or in none."""
        found: dict[str, tuple[str, ...]] = {}
        for layer in (*self.linears, *self.products):
            found[layer.name] = (*found.get(layer.name, ()), layer.engine)
        return found


def quantised_engines(manifest: Manifest) -> list[str]:
    """The engines that int8 and fp8 may touch."""
    return [name for name in manifest.engines if name not in manifest.lower_precision.kept_engines]


def chunks_within(plan: Plan, chunks: int) -> int:
    """As many as `chunks`, or all of a clip that ends before."""
    return min(chunks, plan.manifest.stream.chunks or chunks)


def check_source(plan: Plan) -> None:
    """Raises PrecisionError unless `plan` is one that lower precisions are made of."""
    require_graphs(plan)
    if plan.manifest.precision != "fp32":
        raise PrecisionError(
            f"plan: got {plan.path} in {plan.manifest.precision}, expected fp32; export it with --precision fp32"
        )


def require_graphs(plan: Plan) -> None:
    """Raises PrecisionError unless `plan` is one of ONNX graphs, in which tensors can be looked at."""
    if plan.manifest.backend != "onnxruntime":
        raise PrecisionError(
            f"plan: got {plan.path} for {plan.manifest.backend}, expected one of ONNX graphs; "
            "export it with --backend onnxruntime"
        )


def candidates(plan: Plan) -> Candidates:
    """Raises LayersError."""
    found = Candidates([], [], [])
    precision = plan.manifest.lower_precision
    for name in plan.manifest.engines:
        model, _ = _load(plan, name)
        linears, skipped = find_linears(model, name, precision.layers)
        reason = precision.kept_engines.get(name)
        if reason is None:
            found.linears.extend(linears)
            found.products.extend(find_products(model, name, precision.layers))
        else:
            names = [layer.name for layer in linears] + [layer.name for layer in skipped]
            skipped = [Skipped(layer, name, reason) for layer in names]
        found.skipped.extend(skipped)
    return found


def smoothed_graph(plan: Plan, engine: str, channel_amax: Mapping[str, Any], alpha: float) -> ModelProto:
    """The fp32 graph of an engine under SmoothQuant, weights loaded.

    `channel_amax`: largest magnitude of each channel, [K], by tensor.
    """
    model, folder = _load(plan, engine)
    linears, _ = find_linears(model, engine, plan.manifest.lower_precision.layers)
    amax = {name: np.asarray(values, np.float32) for name, values in channel_amax.items()}
    smooth(model, linears, amax, alpha, folder)
    load_weights(model, folder)
    return model


def quantized_graph(plan: Plan, engine: str, calibration: Calibration, chosen: Collection[str]) -> ModelProto:
    """The graph of an engine with those of its layers quantised whose names are in `chosen`."""
    settings, tensors = calibration.settings, calibration.tensors.get(engine, {})
    layers = plan.manifest.lower_precision.layers
    model, folder = _load(plan, engine)
    linears, _ = find_linears(model, engine, layers)
    if settings.smoothquant is not None:
        amax = {name: np.asarray(t.channel_amax, np.float32) for name, t in tensors.items() if t.channel_amax}
        _check_channels(linears, amax)
        smooth(model, linears, amax, settings.smoothquant, folder)
        linears, _ = find_linears(model, engine, layers)
    linears = [linear for linear in linears if linear.name in chosen]
    products = [product for product in find_products(model, engine, layers) if product.name in chosen]
    wanted = [linear.input for linear in linears]
    wanted += [name for product in products for name in (product.query, product.key, product.value)]
    calibration.check_tensors(engine, wanted)
    codes = {name: Codes(tensor.scale, tensor.zero_point) for name, tensor in tensors.items()}

    def columns(weight: Any) -> Any:
        return weight_scales(weight, calibration.precision, settings.method)

    quantize(model, linears, codes, calibration.precision, columns, folder)
    load_weights(model, folder)
    return quantize_attention(model, products, codes, calibration.precision)


def write_quantized(plan: Plan, calibration: Calibration, chosen: Collection[str], folder: Path) -> Plan:
    """Fills the empty `folder` with `plan`, the `chosen` layers in the calibration's precision; returns that plan."""
    shared, quantised = _tokenizer(plan), quantised_engines(plan.manifest)
    for name, spec in plan.manifest.engines.items():
        if name in quantised:
            save_graph(quantized_graph(plan, name, calibration, chosen), folder / spec.file)
        else:
            shared += graph_files(plan.path / spec.file)
    calibration.save(folder / CALIBRATION_FILE)
    return _finish(plan, folder, shared, {**plan.values(), "precision": calibration.precision})


def write_half(plan: Plan, precision: str, folder: Path) -> Plan:
    """Fills the empty `folder` with `plan` in "fp16" or "bf16"; returns that plan."""
    values = {**plan.values(), "precision": precision}
    for name, spec in plan.manifest.engines.items():
        model = to_half(load_graph(plan.path / spec.file), name, plan.manifest, precision)
        save_graph(model, folder / spec.file)
        dtypes = {value.name: _dtype(value) for value in (*model.graph.input, *model.graph.output)}
        for tensor in (*values["engines"][name]["inputs"], *values["engines"][name]["outputs"]):
            tensor["dtype"] = dtypes[tensor["name"]]
    for state in values["states"]:
        if state["half"] and state["dtype"] == "float32":
            state["dtype"] = HALF[precision]
    return _finish(plan, folder, _tokenizer(plan), values)


def in_precision(plan: Plan, engine: str, graph: Path) -> ModelProto:
    """An fp32 graph of an engine, weights loaded, in the precision that `plan` has the engine in.

    `graph`: a file with the same tensors as the engine of the fp32 plan, as the one whose scans are not lowered.
    Raises PrecisionError for an engine in 8 bits.
    """
    precision = plan.manifest.precision
    if precision in HALF:
        return to_half(load_graph(graph), engine, plan.manifest, precision)
    if precision in QUANTISED and engine in quantised_engines(plan.manifest):
        raise PrecisionError(
            f"plugins: got them for the engine {engine} in {precision}, expected fp32, fp16 or bf16, as plugins and "
            f"{precision} in one engine are not supported; choose another --precision, or leave --plugins out"
        )
    return load_graph(graph)


def add_to_plan(plan: Plan) -> Plan:
    """The files that were added to the folder of `plan` become part of it, and its identity another."""
    return write_manifest(plan.path, plan.values(), plan.manifest.files)


def save_graph(model: ModelProto, path: Path) -> None:
    """Writes a graph whose weights are loaded, to a file beside it where they are large."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > INLINE_BYTES:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))


def _load(plan: Plan, engine: str) -> tuple[ModelProto, Path]:
    """The graph without its weights where they lie in a file of their own, and the folder of that file."""
    file = plan.path / plan.manifest.engines[engine].file
    return onnx.load(file, load_external_data=False), plan.path


def _tokenizer(plan: Plan) -> list[str]:
    """Its file, where the plan has one."""
    return [plan.tokenizer_file.name] if plan.manifest.text is not None else []


def _check_channels(linears: Sequence[Linear], channel_amax: Mapping[str, Any]) -> None:
    for linear in linears:
        channels, expected = channel_amax.get(linear.input), linear.shape[0]
        if linear.operator == "MatMul" and channels is not None and len(channels) != expected:
            raise CalibrationError(
                f"calibration: tensors.{linear.engine}.{linear.input}.channel_amax: got {len(channels)} channels, "
                f"expected {expected}; restore the file or calibrate again"
            )


def graph_files(file: Path) -> list[str]:
    """The names of an ONNX file and of those that hold its weights, all in one folder."""
    return [file.name, *sorted(external_locations(file))]


def share(source: Path, target: Path) -> None:
    """The same file under another name, without a copy where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _finish(plan: Plan, folder: Path, shared: Sequence[str], values: Mapping[str, Any]) -> Plan:
    """Adds the files of `plan` named in `shared` as they are, and a manifest of `values`."""
    for name in shared:
        share(plan.path / name, folder / name)
    return write_manifest(folder, values, {name: plan.manifest.files[name] for name in shared})


def _dtype(value: ValueInfoProto) -> str:
    return str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
