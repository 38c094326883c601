"""The corpus of wrong_manifests.json, which says at its top how it is read, as the bytes of manifests."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from small_plan import sealed

CORPUS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
LONGEST_S = 3.0  # of the processor, until one is refused


def bases() -> dict[str, bytes]:
    """Manifests that hold, but for files that are not there."""
    return {name: sealed(values) for name, values in CORPUS["bases"].items()}


def wrong() -> list[tuple[bytes, str]]:
    """(manifest, how its error must begin)."""
    edits = [(sealed(_edited(CORPUS["bases"][e["base"]], e["edits"])), e["field"]) for e in CORPUS["wrong"]]
    entries = [*edits, *((_replaced(entry), entry["field"]) for entry in CORPUS["bytes"])]
    return [(content, f"manifest.json: {field}: " if field else "manifest.json: ") for content, field in entries]


def check_line(message: str, seconds: float) -> None:
    """It is one line of bounded length, and did not take long."""
    assert seconds < LONGEST_S and "\n" not in message and len(message) < 1000


def _edited(values: Any, edits: Any) -> Any:
    values = copy.deepcopy(values)
    for edit in edits:
        *above, last = edit["path"]
        place = values
        for key in above:
            place = place[key]
        if edit["operation"] == "remove":
            del place[last]
        elif edit["operation"] == "insert":
            place.insert(last, edit["value"])
        else:
            place[last] = edit["value"]
    return values


def _replaced(entry: Any) -> bytes:
    """The bytes of an entry of `bytes`."""
    if "text" in entry:
        return entry["text"].encode()
    whole, find = sealed(CORPUS["bases"][entry["base"]]).decode(), entry["find"]
    at = whole.rindex(find) if entry.get("last") else whole.index(find)
    content = (whole[:at] + entry["replace"] + whole[at + len(find) :]).encode()
    if entry.get("seal"):
        before = content[:-68]
        content = before + hashlib.sha256(before).hexdigest().encode() + content[-4:]
    return content
