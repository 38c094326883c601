"""Every manifest of the corpus is refused, by the name of its wrong field."""

from __future__ import annotations

import json
import time

import pytest
from wrong_manifests import CORPUS, bases, check_line, wrong

from videossm.runtime import Plan, PlanError

WRONG = wrong()


def refused(folder, content):
    """The error of a manifest."""
    (folder / "manifest.json").write_bytes(content)
    started = time.process_time()
    with pytest.raises(PlanError) as caught:
        Plan.open(folder)
    check_line(str(caught.value), time.process_time() - started)
    return str(caught.value)


@pytest.mark.parametrize("base", bases())
def test_a_base_holds_but_for_its_files(tmp_path, base):
    assert " missing in " in refused(tmp_path, bases()[base])


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_field_is_named(tmp_path, number):
    content, begins = WRONG[number]
    assert refused(tmp_path, content).startswith(begins), content


def test_there_are_enough_and_none_twice():
    edits = [json.dumps([entry["base"], entry["edits"]]) for entry in CORPUS["wrong"]]
    assert len(set(edits)) == len(edits) >= 200
