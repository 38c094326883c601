"""PyTorch module to ONNX file: one engine traced, its scans lowered, its tensors listed."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch

from videossm.export.engines import EngineSpec
from videossm.export.lowering import lower
from videossm.export.optimize import optimize
from videossm.export.schemas import custom_translation_table

INLINE_BYTES = 1 << 27  # weights above it go to an external data file: serialising them inline holds two copies


def trace(spec: EngineSpec, folder: Path, lowering: str, opset: int) -> dict[str, Any]:
    """Writes `folder`/NAME.onnx (and NAME.onnx.data where it is large).

    Returns the manifest's entry of the engine: file, inputs, outputs.
    """
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            spec.module.eval(),
            spec.inputs,
            dynamo=True,
            opset_version=opset,
            input_names=spec.input_names,
            output_names=spec.output_names,
            custom_translation_table=custom_translation_table(),
            optimize=True,
            verbose=False,
        )
    assert program is not None  # None is what dynamo=False returns
    optimize(program.model, spec.levels)
    path = folder / f"{spec.name}.onnx"
    weight_bytes = sum(p.numel() * p.element_size() for p in spec.module.parameters())
    program.save(str(path), external_data=weight_bytes > INLINE_BYTES)
    del program
    model = onnx.load(str(path), load_external_data=False)
    entry = {
        "file": path.name,
        "inputs": [_tensor(value) for value in model.graph.input],
        "outputs": [_tensor(value) for value in model.graph.output],
    }
    _forget_sources(model)
    with quiet():  # a lowering may trace too
        lower(model, lowering)
    onnx.save(model, str(path))
    return entry


def _forget_sources(model: onnx.ModelProto) -> None:
    """Keeps of the exporter's notes only which module a node belongs to.

    The rest are stack traces with the paths of whoever exported: a fifth of a small graph, nobody's
    business, and a reason for two equal exports to differ.
    """
    for node in model.graph.node:
        kept = [prop for prop in node.metadata_props if prop.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return {"name": value.name, "dtype": str(dtype), "shape": [d.dim_value for d in kind.shape.dim]}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter reports on stdout and warns about packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
