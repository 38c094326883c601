"""Every manifest of wrong_manifests.json is refused, by the same fields as in Python; the file says how it is read."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_plan import sealed
from videossm_c import PLAN, CError, CPlan, Library

FILE = Path(__file__).parents[1] / "wrong_manifests.json"
LONGEST_S = 1.0

if not FILE.is_file():
    pytest.skip(f"{FILE.name} is not there", allow_module_level=True)
CORPUS = json.loads(FILE.read_text(encoding="utf-8"))


def edited(values: Any, edits: Any) -> Any:
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


def replaced(entry: Any) -> bytes:
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


@pytest.fixture
def refused(library: Library, tmp_path: Path) -> Callable[[bytes], str]:
    """`refused(content)`: the error of that manifest; its line and its time are bounded."""

    def refuse(content: bytes) -> str:
        (tmp_path / "manifest.json").write_bytes(content)
        started = time.perf_counter()
        with pytest.raises(CError) as caught:
            CPlan(library, tmp_path)
        message = str(caught.value)
        assert time.perf_counter() - started < LONGEST_S and "\n" not in message and len(message) < 1000
        assert caught.value.status == PLAN
        return message

    return refuse


@pytest.mark.parametrize("base", CORPUS["bases"])
def test_a_base_holds_but_for_its_files(refused: Callable[[bytes], str], base: str) -> None:
    assert " missing in " in refused(sealed(CORPUS["bases"][base]))


@pytest.mark.parametrize("number", range(len(CORPUS["wrong"])))
def test_a_wrong_field_is_named(refused: Callable[[bytes], str], number: int) -> None:
    entry = CORPUS["wrong"][number]
    message = refused(sealed(edited(CORPUS["bases"][entry["base"]], entry["edits"])))
    assert message.startswith(f"manifest.json: {entry['field']}: "), entry["edits"]


@pytest.mark.parametrize("number", range(len(CORPUS["bytes"])))
def test_wrong_bytes_are_refused(refused: Callable[[bytes], str], number: int) -> None:
    entry = CORPUS["bytes"][number]
    message = refused(replaced(entry))
    assert message.startswith(f"manifest.json: {entry['field']}: " if entry["field"] else "manifest.json: "), entry
