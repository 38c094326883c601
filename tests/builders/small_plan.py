"""A whole plan from graphs and a few words: what a manifest repeats is taken from the tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graph import Graph

from videossm.runtime.noise import noise
from videossm.runtime.plan import Plan, write_manifest

WORDS = ["a", "red", "green", "blue", "circle", "square", "moves", "left", "right"]


def write_tokenizer(folder: Path) -> None:
    """Word-level over WORDS, whose ids start at 2."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]"])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_plan(
    folder: Path,
    graphs: Mapping[str, Graph],
    passes: Sequence[str],
    calls: Sequence[str],
    states: Mapping[str, str] | None = None,
    window: Sequence[Any] | None = None,
    text: int | None = None,
    chunks: int | None = None,
    fps: float = 8.0,
    name: str = "small",
    **changes: Any,
) -> Plan:
    """Fills the empty `folder`.

    Args:
        passes: each as "ENGINE scalar=0.5 .. noise commits".
        calls: each as "WHEN ENGINE".
        states: by name, "KIND", "KIND half" or "KIND per_pass"; dtype and shape are those of the output that writes it.
        window: chunks, sink, chunk frames and how positions count; `text`: tokens of a prompt.
        changes: of any other field of the manifest.
    """
    engines = {engine: graph.save(folder, engine) for engine, graph in graphs.items()}
    written = {t["target"]: t for entry in engines.values() for t in entry["outputs"]}
    frames = {
        when: t["shape"]
        for when, engine in (call.split() for call in calls)
        for t in engines[engine]["outputs"]
        if t["target"] == "frames"
    }
    first, later = (frames.get(f"after_{which}", frames.get("after")) for which in ("first", "later"))
    if text is not None:
        write_tokenizer(folder)
    words = {"length": text, "padding_id": 0, "unknown": "refuse", "examples": ["a red circle", "blue"]}
    values = {
        "schema_version": 2,
        "name": name,
        "family": "tests",
        "precision": "fp32",
        "backend": "onnxruntime",
        "lowering": "standard",
        "target": None,
        "stream": {
            "batch": first[0],
            "fps": fps,
            "height": first[2],
            "width": first[3],
            "first_frames": first[1],
            "later_frames": later[1],
            "chunks": chunks,
        },
        "window": window and dict(zip(("chunks", "sink", "chunk_frames", "positions"), window, strict=True)),
        "text": words if text is not None else None,
        "states": [_state(state, kind.split(), written[f"state.{state}"]) for state, kind in (states or {}).items()],
        "engines": engines,
        "passes": [_pass(*each.split()) for each in passes],
        "calls": [dict(zip(("when", "engine"), call.split(), strict=True)) for call in calls],
        "lower_precision": {},
        "self_test": {"noise": noise(0, 0, 0, (8,)).astype(float).tolist()},
        "model": {"made by": "hand"},
        "versions": {"videossm": "0.1.0"},
        **changes,
    }
    values.setdefault("stream_identity", hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest())
    write_manifest(folder, values)
    return Plan.open(folder)


def rebuilt(folder: Path, **changes: Any) -> Plan:
    """The plan in `folder` with other fields of the manifest. For a backend of engines its graphs stand for those."""
    values = {**json.loads((folder / "manifest.json").read_text()), **changes}
    if values["backend"] != "onnxruntime":
        values["target"] = values["target"] or {"architectures": ["sm_89"]}
        for name, engine in values["engines"].items():
            if engine["file"] != f"{name}.engine":
                engine["file"] = (folder / engine["file"]).rename(folder / f"{name}.engine").name
    return write_manifest(folder, values)


def sealed(values: Mapping[str, Any]) -> bytes:
    """A manifest.json of `values` as they are, right or wrong, whose checksum holds."""
    text = json.dumps({**{key: value for key, value in values.items() if key != "checksum"}, "checksum": ""})
    before = text.removesuffix('"}').encode()
    return before + hashlib.sha256(before).hexdigest().encode() + b'"\n}\n'


def _state(name: str, words: Sequence[str], tensor: Mapping[str, Any]) -> dict[str, Any]:
    kind, *more = words
    flags = {"per_pass": "per_pass" in more, "half": "half" in more}
    return {"name": name, "dtype": tensor["dtype"], "shape": tensor["shape"], "kind": kind, **flags}


def _pass(engine: str, *words: str) -> dict[str, Any]:
    scalars = dict(word.split("=") for word in words if "=" in word)
    return {
        "engine": engine,
        "scalars": {name: float(value) for name, value in scalars.items()},
        "noise": "noise" in words,
        "commits": "commits" in words,
    }
