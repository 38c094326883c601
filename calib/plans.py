"""Plans of lower precision, made of an fp32 plan: graphs rewritten, all other files the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from videossm.calib.calibration import Calibration, CalibrationError
from videossm.calib.half import to_half
from videossm.calib.linears import Linear, Product, Skipped, find_linears, find_products
from videossm.calib.observers import Codes, weight_scales
from videossm.calib.qdq import quantize, quantize_attention
from videossm.calib.smoothquant import smooth
from videossm.runtime import Plan
from videossm.runtime.errors import UserError
from videossm.runtime.plan import write_manifest

QUANTISED_ENGINES = ("step",)
KEPT_ENGINES = {  # why they stay fp32
    "text_encoder": "runs once a prompt, and every pass reads what it makes",
    "memory": "state",
    "decoder": "pixels",
}
INLINE_BYTES = 1 << 27  # of a graph's weights; more go to a file beside it
HALF = {"fp16": "float16", "bf16": "bfloat16"}  # precision -> dtype of its tensors
CALIBRATION_FILE = "calibration.json"


class PrecisionError(UserError):
    """A plan that cannot be made of this one."""


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


def candidates(plan: Plan) -> tuple[list[Linear], list[Product], list[Skipped]]:
    """All that could be quantised, over the engines of `plan`, and what never is."""
    linears: list[Linear] = []
    products: list[Product] = []
    skipped: list[Skipped] = []
    for name, spec in plan.manifest.engines.items():
        model = onnx.load(plan.path / spec.file, load_external_data=False)
        found, left = find_linears(model, name)
        if name in QUANTISED_ENGINES:
            linears += found
            products += find_products(model, name)
        else:
            layers = [linear.name for linear in found] + [skip.name for skip in left]
            left = [Skipped(layer, name, KEPT_ENGINES[name]) for layer in layers]
        skipped += left
    return linears, products, skipped


def smoothed_graph(plan: Plan, engine: str, channel_amax: Mapping[str, Any], alpha: float) -> ModelProto:
    """The fp32 graph of an engine under SmoothQuant, weights loaded.

    `channel_amax`: largest magnitude of each channel, [K], by tensor.
    """
    model, folder = _load(plan, engine)
    linears, _ = find_linears(model, engine)
    amax = {name: np.asarray(values, np.float32) for name, values in channel_amax.items()}
    smooth(model, linears, amax, alpha, folder)
    load_external_data_for_model(model, str(folder))
    return model


def quantized_graph(plan: Plan, engine: str, calibration: Calibration, chosen: Collection[str]) -> ModelProto:
    """The graph of an engine with those of its layers quantised whose names are in `chosen`."""
    settings, tensors = calibration.settings, calibration.tensors.get(engine, {})
    model, folder = _load(plan, engine)
    linears = [linear for linear in find_linears(model, engine)[0] if linear.name in chosen]
    if settings.smoothquant is not None:
        amax = {name: np.asarray(t.channel_amax, np.float32) for name, t in tensors.items() if t.channel_amax}
        smoothed = find_linears(model, engine)[0]
        _check_channels(smoothed, amax)
        smooth(model, smoothed, amax, settings.smoothquant, folder)
        linears = [linear for linear in find_linears(model, engine)[0] if linear.name in chosen]
    products = [product for product in find_products(model, engine) if product.name in chosen]
    wanted = [linear.input for linear in linears]
    wanted += [name for product in products for name in (product.query, product.key, product.value)]
    calibration.check_tensors(engine, wanted)
    codes = {name: Codes(tensor.scale, tensor.zero_point) for name, tensor in tensors.items()}

    def columns(weight: Any) -> Any:
        return weight_scales(weight, calibration.precision, settings.method)

    quantize(model, linears, codes, calibration.precision, columns, folder)
    load_external_data_for_model(model, str(folder))
    return quantize_attention(model, products, codes, calibration.precision)


def write_quantized(plan: Plan, calibration: Calibration, chosen: Collection[str], folder: Path) -> Plan:
    """Fills the empty `folder` with `plan`, the `chosen` layers in the calibration's precision; returns that plan."""
    shared = [plan.tokenizer_file.name]
    for name, spec in plan.manifest.engines.items():
        if name in QUANTISED_ENGINES:
            save_graph(quantized_graph(plan, name, calibration, chosen), folder / spec.file)
        else:
            shared += graph_files(plan.path / spec.file)
    calibration.save(folder / CALIBRATION_FILE)
    return _finish(plan, folder, shared, precision=calibration.precision)


def write_half(plan: Plan, precision: str, folder: Path) -> Plan:
    """Fills the empty `folder` with `plan` in "fp16" or "bf16"; returns that plan."""
    engines = {}
    for name, spec in plan.manifest.engines.items():
        model = half_graph(plan, name, precision)
        save_graph(model, folder / spec.file)
        inputs, outputs = ([_tensor(value) for value in values] for values in (model.graph.input, model.graph.output))
        engines[name] = {"file": spec.file, "inputs": inputs, "outputs": outputs}
    return _finish(plan, folder, [plan.tokenizer_file.name], precision=precision, engines=engines)


def half_graph(plan: Plan, engine: str, precision: str) -> ModelProto:
    """The graph of an engine in "fp16" or "bf16", weights loaded."""
    model, folder = _load(plan, engine)
    load_external_data_for_model(model, str(folder))
    return to_half(model, engine, precision)


def add_to_plan(plan: Plan) -> Plan:
    """The files that were added to the folder of `plan` become part of it, and its identity another."""
    return write_manifest(plan.path, _values(plan), plan.manifest.files)


def save_graph(model: ModelProto, path: Path) -> None:
    """Writes a graph whose weights are loaded, to a file beside it where they are large."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > INLINE_BYTES:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))


def _load(plan: Plan, engine: str) -> tuple[ModelProto, Path]:
    """The graph without its weights where they lie in a file of their own, and the folder of that file."""
    spec = dict(plan.manifest.engines.items())[engine]
    return onnx.load(plan.path / spec.file, load_external_data=False), plan.path


def _check_channels(linears: Sequence[Linear], channel_amax: Mapping[str, Any]) -> None:
    for linear in linears:
        channels, expected = channel_amax.get(linear.input), linear.shape[0]
        if channels is not None and len(channels) != expected:
            raise CalibrationError(
                f"calibration: tensors.{linear.engine}.{linear.input}.channel_amax: got {len(channels)} channels, "
                f"expected {expected}; restore the file or calibrate again"
            )


def graph_files(file: Path) -> list[str]:
    """The names of an ONNX file and of those that hold its weights, all in one folder."""
    model = onnx.load(file, load_external_data=False)
    outside = {
        entry.value
        for t in model.graph.initializer
        if uses_external_data(t)
        for entry in t.external_data
        if entry.key == "location"
    }
    return [file.name, *sorted(outside)]


def share(source: Path, target: Path) -> None:
    """The same file under another name, without a copy where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _finish(plan: Plan, folder: Path, shared: Sequence[str], **changes: Any) -> Plan:
    """Adds the files of `plan` named in `shared` as they are, and the manifest with its `changes`."""
    for name in shared:
        share(plan.path / name, folder / name)
    hashed = {name: plan.manifest.files[name] for name in shared}
    return write_manifest(folder, {**_values(plan), **changes}, hashed)


def _values(plan: Plan) -> dict[str, Any]:
    """The manifest without its list of files."""
    values = plan.manifest.model_dump(mode="json")
    del values["files"]
    return values


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return {"name": value.name, "dtype": str(dtype), "shape": [d.dim_value for d in kind.shape.dim]}
