"""PyTorch module to ONNX file: one engine traced, with each of its scans as a single node."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from videossm.export.example import distinct
from videossm.export.optimize import optimize
from videossm.export.schemas import custom_translation_table
from videossm.models.family import Engine, ModelError, Precision
from videossm.models.scans.capture import captured_scans

MOST_REASON = 300  # characters of what torch says
INLINE_BYTES = 1 << 27  # weights above it go to an external data file: serialising them inline holds two copies


def trace(
    engine: Engine, levels: Mapping[str, Sequence[float]], opset: int, folder: Path, precision: Precision | None = None
) -> tuple[onnx.ModelProto, Path]:
    """Writes `folder`/NAME.onnx (and NAME.onnx.data where it is large): the canonical graph, its scans single nodes.

    `levels`: all values of the inputs that a pass sets. `precision`: what a lower one may touch. Returns the graph,
    without weights that lie beside it, and its path. Raises ModelError where the module cannot be traced, or has other
    tensors than `engine` names.
    """
    try:
        with torch.no_grad(), quiet(), captured_scans():
            program = torch.onnx.export(
                engine.module.eval(),
                distinct(engine.example),
                dynamo=True,
                opset_version=opset,
                input_names=list(engine.inputs),
                output_names=list(engine.outputs),
                custom_translation_table=custom_translation_table(),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch has no common class of them
        why = _reason(error)
        raise ModelError(f"engine {engine.name}: torch.onnx cannot trace it ({why}); change the module") from error
    assert program is not None  # None is what dynamo=False returns
    optimize(program.model, levels, precision)
    path = folder / f"{engine.name}.onnx"
    weight_bytes = sum(p.numel() * p.element_size() for p in engine.module.parameters())
    program.save(str(path), external_data=weight_bytes > INLINE_BYTES)
    del program
    model = onnx.load(str(path), load_external_data=False)
    _check_names(engine, model)
    _forget_sources(model)
    onnx.save(model, str(path))
    return model, path


def described(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, dtype and shape of a graph's input or output, as a manifest has them."""
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return {"name": value.name, "dtype": str(dtype), "shape": [d.dim_value for d in kind.shape.dim]}


def _reason(error: BaseException) -> str:
    """What torch says, on one line: of its own steps the first cause, which speaks of the module."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MOST_REASON]


def _check_names(engine: Engine, model: onnx.ModelProto) -> None:
    """The graph has the tensors that `engine` names: what the tracer left over would have names of its own."""
    for kind, values, named in (
        ("inputs", model.graph.input, engine.inputs),
        ("outputs", model.graph.output, engine.outputs),
    ):
        found = [value.name for value in values]
        if found != list(named):
            odd = next((name for name in (*found, *named) if (name in found) != (name in named)), "another order")
            raise ModelError(
                f"engine {engine.name}: {kind}: got {len(found)} tensors from the module, {odd} among them, expected "
                f"the {len(named)} that are named; name each tensor once, in the module's order"
            )


def _forget_sources(model: onnx.ModelProto) -> None:
    """Keeps of the exporter's notes only which module a node belongs to.

    The rest are stack traces with the paths of whoever exported: a fifth of a small graph, nobody's
    business, and a reason for two equal exports to differ.
    """
    for node in model.graph.node:
        kept = [prop for prop in node.metadata_props if prop.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter reports on stdout, prints graphs on stderr where it fails, and warns of what nobody asked for."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
