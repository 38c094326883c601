"""Every manifest of wrong_manifests.json is refused, by the name of its wrong field; the file says how it is read."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from pathlib import Path

import pytest
from small_plan import sealed

from videossm.runtime import Plan, PlanError

CORPUS = json.loads(Path(__file__).with_name("wrong_manifests.json").read_text(encoding="utf-8"))
LONGEST_S = 1.0


def edited(values, edits):
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


def replaced(entry):
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


def refused(folder, content):
    """The error of a manifest; its line and its time are bounded."""
    (folder / "manifest.json").write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(PlanError) as caught:
        Plan.open(folder)
    message = str(caught.value)
    assert time.perf_counter() - started < LONGEST_S and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize("base", CORPUS["bases"])
def test_a_base_holds_but_for_its_files(tmp_path, base):
    assert " missing in " in refused(tmp_path, sealed(CORPUS["bases"][base]))


@pytest.mark.parametrize("number", range(len(CORPUS["wrong"])))
def test_a_wrong_field_is_named(tmp_path, number):
    entry = CORPUS["wrong"][number]
    message = refused(tmp_path, sealed(edited(CORPUS["bases"][entry["base"]], entry["edits"])))
    assert message.startswith(f"manifest.json: {entry['field']}: "), entry["edits"]


@pytest.mark.parametrize("number", range(len(CORPUS["bytes"])))
def test_wrong_bytes_are_refused(tmp_path, number):
    entry = CORPUS["bytes"][number]
    message = refused(tmp_path, replaced(entry))
    assert message.startswith(f"manifest.json: {entry['field']}: " if entry["field"] else "manifest.json: "), entry


def test_there_are_enough_and_none_twice():
    wrong = [json.dumps([entry["base"], entry["edits"]]) for entry in CORPUS["wrong"]]
    assert len(set(wrong)) == len(wrong) >= 200
