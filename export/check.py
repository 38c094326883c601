"""Does a deployment fit together? Asked before anything is traced, which takes minutes of a large model.

Inputs are those of the examples. Outputs are not known yet: each is taken for what its target needs, so all but their
own shapes and types is checked. What the traced graphs have is checked when the manifest is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from videossm.export.example import tensors_in
from videossm.export.manifest import in_deployment, manifest_values
from videossm.models.family import Deployment, Engine, ModelError, Pass, Precision, State, Stream, Text, Window
from videossm.runtime.contract import check_contract
from videossm.runtime.errors import ManifestError
from videossm.runtime.manifest import TOKENIZER_FILE
from videossm.runtime.plan import validated

_NO_DIGITS = "0" * 64  # where a hash will be


def check_deployment(deployment: Deployment, family: str) -> None:
    """Raises ModelError, one line that names the field of the Deployment, for the first part that does not fit."""
    _check_types(deployment)
    _check_frames(deployment)
    for name, count in Counter(engine.name for engine in deployment.engines).items():
        if count > 1:
            raise ModelError(f"engine {name}: got {count} engines of that name, expected one; rename the others")
    inputs = {engine.name: _inputs(engine) for engine in deployment.engines}
    engines = {
        engine.name: {
            "file": f"{engine.name}.onnx",
            "inputs": inputs[engine.name],
            "outputs": _outputs(engine, deployment, [tensor for own in inputs.values() for tensor in own]),
        }
        for engine in deployment.engines
    }
    values = manifest_values(deployment, family, "standard", engines, _NO_DIGITS)
    files = [engine["file"] for engine in engines.values()] + [TOKENIZER_FILE] * (deployment.text is not None)
    values["files"] = {file: {"sha256": _NO_DIGITS, "size_bytes": 0} for file in files}
    try:
        check_contract(validated(_as_json({**values, "checksum": _NO_DIGITS})))
    except ManifestError as error:
        raise in_deployment(error, engines, deployment) from error


def _check_types(deployment: Deployment) -> None:
    """What a dataclass does not check by itself."""
    parts: list[tuple[str, type, bool]] = [("stream", Stream, False), ("window", Window, True)]
    parts += [("text", Text, True), ("precision", Precision, False)]
    for field, kind, optional in parts:
        _check_type(field, getattr(deployment, field), kind, optional)
    lists: list[tuple[str, Mapping[Any, object], type]] = [
        ("engines", dict(enumerate(deployment.engines)), Engine),
        ("passes", dict(enumerate(deployment.passes)), Pass),
        ("states", deployment.states, State),
    ]
    for field, entries, kind in lists:
        for key, entry in entries.items():
            _check_type(f"{field}[{key!r}]", entry, kind)


def _check_frames(deployment: Deployment) -> None:
    """One engine makes one number of frames."""
    first, later = deployment.stream.first_frames, deployment.stream.later_frames
    for engine in deployment.engines:
        if first != later and engine.when == "after" and "frames" in engine.outputs.values():
            raise ModelError(
                f"engine {engine.name}: when: got after, expected an engine after_first and one after_later, as the "
                f"first chunk has {first} frames and every later one {later}; mend the model's Deployment"
            )


def _check_type(field: str, value: object, kind: type, optional: bool = False) -> None:
    if not (isinstance(value, kind) or (optional and value is None)):
        expected = f"a {kind.__name__}{' or None' if optional else ''}"
        raise ModelError(f"{field}: got a {type(value).__name__}, expected {expected}; mend the model's Deployment")


def _inputs(engine: Engine) -> list[dict[str, Any]]:
    """The inputs of the example, as a manifest has them."""
    found = list(tensors_in(engine.example))
    if len(found) != len(engine.inputs):
        raise ModelError(
            f"engine {engine.name}: example: got {len(found)} tensors, expected {len(engine.inputs)}, one for each of "
            "inputs in their order; add what is missing, or leave out what is too much"
        )
    return [
        {**_typed(name, str(tensor.dtype).removeprefix("torch."), tensor.shape), "source": source}
        for (name, source), tensor in zip(engine.inputs.items(), found, strict=True)
    ]


def _outputs(engine: Engine, deployment: Deployment, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs as their targets need them. `inputs`: of all engines."""
    return [
        {**_typed(name, *_wanted(target, engine.when, deployment, inputs)), "target": target}
        for name, target in engine.outputs.items()
    ]


def _wanted(
    target: str, when: str, deployment: Deployment, inputs: list[dict[str, Any]]
) -> tuple[str, tuple[int, ...]]:
    """dtype and shape that `target` needs; something for a target that nothing reads, which is refused later."""
    stream = deployment.stream
    if target == "frames":
        frames = stream.later_frames if when == "after_later" else stream.first_frames
        return "uint8", (stream.batch, frames, stream.height, stream.width, 3)
    state = deployment.states.get(target.removeprefix("state."))
    evicted = target.replace("state.", "evicted.", 1)
    reading = next((tensor for tensor in inputs if tensor["source"] in (target, evicted)), None)
    if reading is None:
        return "float32", (stream.batch, 1)
    shape = tuple(reading["shape"])
    if state is not None and state.kind == "ring" and reading["source"] == target and len(shape) > 1:
        chunks = deployment.window.chunks if deployment.window else 1
        shape = (shape[0], shape[1] // chunks, *shape[2:])
    return reading["dtype"], shape


def _typed(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def _as_json(values: Mapping[str, Any]) -> bytes:
    for field, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            field = {"model": "config"}.get(field, field)
            raise ModelError(
                f"{field}: got what JSON cannot hold ({error}), expected plain types; convert it"
            ) from None
    return json.dumps(values).encode()
