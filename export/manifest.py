"""What a manifest says of a deployment, and how its fields are called there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import onnxruntime
import torch

from videossm.models.family import Deployment, ModelError
from videossm.runtime.errors import ManifestError
from videossm.runtime.manifest import SCHEMA_VERSION
from videossm.runtime.noise import noise

DISTRIBUTIONS = ("videossm", "torch", "onnx", "onnxscript")  # whose versions a manifest records
SELF_TEST_NUMBERS = 8

# By name: file, weights, inputs with dtype, shape and source, outputs with target instead; as a manifest has them.
Engines = Mapping[str, Any]


def manifest_values(
    deployment: Deployment, family: str, lowering: str, engines: Engines, identity: str
) -> dict[str, Any]:
    """The manifest of the fp32 plan, but for `files` and `checksum`. `identity`: what `stream_identity` gives."""
    text = deployment.text
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": deployment.name,
        "family": family,
        "precision": "fp32",  # others are made of this plan, by videossm.calib
        "backend": "onnxruntime",
        "lowering": lowering,
        "target": None,
        "stream_identity": identity,
        "stream": asdict(deployment.stream),
        "window": asdict(deployment.window) if deployment.window else None,
        "text": None,
        "states": states_of(deployment, engines),
        "engines": engines,
        "passes": [asdict(each) for each in deployment.passes],
        "calls": [{"engine": e.name, "when": e.when} for e in deployment.engines if e.when != "pass"],
        "lower_precision": asdict(deployment.precision),
        "self_test": {"noise": noise(0, 0, 0, (SELF_TEST_NUMBERS,)).astype(np.float64).tolist()},
        "model": dict(deployment.config),
        "versions": {name: version(name) for name in DISTRIBUTIONS} | {"onnxruntime": onnxruntime.__version__},
    }
    if text is not None:
        values["text"] = {
            "length": text.length,
            "padding_id": _padding_id(text.tokenizer),
            "unknown": text.unknown,
            "examples": list(text.examples),
        }
    return values


def states_of(deployment: Deployment, engines: Engines) -> list[dict[str, Any]]:
    """Each with dtype and shape: those of the tensor that writes it, which for a ring is one chunk's part."""
    written = {tensor["target"]: tensor for engine in engines.values() for tensor in engine["outputs"]}
    found = []
    for name, state in deployment.states.items():
        tensor = written.get(f"state.{name}")
        if tensor is None:
            raise ModelError(
                f"states[{name!r}]: got no engine that writes it, expected an output with target state.{name}; "
                "add it, or leave the state out"
            )
        found.append({**asdict(state), "name": name, "dtype": tensor["dtype"], "shape": tensor["shape"]})
    return found


def stream_identity(deployment: Deployment, family: str, engines: Engines) -> str:
    """SHA-256 of what a state depends on, whatever the backend, precision and lowering: program and weights."""
    digest = hashlib.sha256()
    states = states_of(deployment, engines)
    parts = {
        "family": family,
        "stream": asdict(deployment.stream),
        "window": asdict(deployment.window) if deployment.window else None,
        "passes": [asdict(each) for each in deployment.passes],
        "model": dict(deployment.config),
        "states": [{key: state[key] for key in ("name", "kind", "per_pass", "shape")} for state in states],
        "noise": "philox4x32-10",
    }
    digest.update(json.dumps(parts, sort_keys=True).encode())
    seen: set[int] = set()
    for engine in deployment.engines:
        for name, tensor in engine.module.state_dict().items():
            if tensor.data_ptr() not in seen:  # engines share weights
                seen.add(tensor.data_ptr())
                digest.update(f"{engine.name}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(memoryview(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def in_deployment(error: ManifestError, engines: Engines, deployment: Deployment) -> ModelError:
    """What does not hold in a manifest, in the words of the deployment that it is of."""
    names = "|".join(re.escape(name) for name in sorted(engines, key=len, reverse=True))
    calls = [engine.name for engine in deployment.engines if engine.when != "pass"]

    def tensor(found: re.Match[str]) -> str:
        entry = engines[found[1]][found[2]][int(found[3])]
        return f"engine {found[1]}: {found[2]}[{entry['name']!r}]"

    text = f"{error.field}: {error.problem}"
    text = re.sub(rf"\bengines\.({names})\.(inputs|outputs)\.(\d+)(\.source|\.target)?", tensor, text)
    text = re.sub(rf"\bengines\.({names})\.", r"engine \1: ", text)
    text = re.sub(rf"\bengines\.({names})\b", r"engine \1", text)
    text = re.sub(r"\bstates\.(\d+)", lambda found: f"states[{list(deployment.states)[int(found[1])]!r}]", text)
    text = re.sub(r"\bpasses\.(\d+)", r"passes[\1]", text)
    text = re.sub(r"\bcalls\.(\d+)\.when", lambda found: f"engine {calls[int(found[1])]}: when", text)
    text = re.sub(r"\bcalls\.(\d+)\.engine", lambda found: f"engine {calls[int(found[1])]}", text)
    return ModelError(f"{text}; mend the model's Deployment")


def _padding_id(tokenizer: str) -> int:
    """The id of the tokenizer's padding, or else of its token [PAD]. Raises ModelError where it has neither."""
    from tokenizers import Tokenizer

    try:
        read = Tokenizer.from_str(tokenizer)
    except Exception as error:  # what tokenizers raises
        raise ModelError(f"text.tokenizer: got no readable tokenizer ({error}), expected its JSON; mend it") from error
    padding = (read.padding or {}).get("pad_id", read.token_to_id("[PAD]"))
    if padding is None:
        raise ModelError("text.tokenizer: got no padding and no [PAD] token, expected one; add it")
    return int(padding)
