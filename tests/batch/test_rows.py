"""Rows of a batch: what each stands for, and one clear reason for a bad one."""

from __future__ import annotations

import json

import pytest

from videossm.batch.rows import BadRow, Request, read_rows


def read(plan, *rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return list(read_rows(lines, plan))


def test_rows_in_the_terms_of_the_plan(tiny_plan):
    timed = [{"start_s": 0, "prompt": "a red circle"}, {"start_s": 0.5, "prompt": "blue"}]
    rows = [{"id": "a", "prompt": "red"}, {"id": "b", "prompt": timed, "seed": 2**64 - 1, "seconds": 1.2}]
    (first, a), (second, b) = read(tiny_plan, rows[0], b" \n", rows[1])
    assert (first, second) == (1, 3), "blank lines count, as an editor counts them"
    assert isinstance(a, Request) and (a.chunks, a.prompts, a.seed) == (14, {0: "red"}, 0), "5 seconds"
    assert isinstance(b, Request) and (b.chunks, b.seed) == (4, 2**64 - 1), "rounded up"
    assert b.prompts == {0: "a red circle", 2: "blue"}, "from the first chunk at that time on"


def test_a_digest_is_of_all_that_a_video_depends_on(tiny_plan):
    rows = [{}, {"seed": 1}, {"seconds": 9}, {"prompt": "blue"}, {"id": "other"}]
    digests = [read(tiny_plan, {"id": "a", "prompt": "red", **row})[0][1].digest for row in rows]
    assert len(set(digests[:4])) == 4 and digests[4] == digests[0], "the file's name is none of it"


BAD = {
    "no-json": (b"red circle", "row: got 'red circle', expected: Invalid JSON"),
    "no-text": (b'"\xff"', "row: got"),
    "no-object": ([1], "row: got [1]"),
    "deep": (b"[" * 5000, "row: got"),
    "no-id": ({"prompt": "red"}, "id: got nothing"),
    "path": ({"id": "../x", "prompt": "red"}, "id: got '../x'"),
    "hidden": ({"id": ".x", "prompt": "red"}, "id: got '.x'"),
    "unknown-field": ({"id": "a", "prompt": "red", "fps": 3}, "fps: got 3"),
    "unknown-word": ({"id": "a", "prompt": "pink"}, "prompt: got the unknown word 'pink'"),
    "empty": ({"id": "a", "prompt": ""}, "prompt: got an empty text"),
    "no-prompt": ({"id": "a"}, "prompt: got none"),
    "number": ({"id": "a", "prompt": 7}, "prompt: got 7, expected a text or"),
    "no-prompts": ({"id": "a", "prompt": []}, "prompt: got [], expected a text or"),
    "timed-number": ({"id": "a", "prompt": [{"start_s": 0, "prompt": 7}]}, "prompt.0.prompt: got 7"),
    "not-at-0": ({"id": "a", "prompt": [{"start_s": 1, "prompt": "red"}]}, "prompt: got none at 0 s"),
    "twice": ({"id": "a", "prompt": [{"start_s": 0, "prompt": "red"}] * 2}, "prompt: got two for the chunk at 0 s"),
    "late": (
        {"id": "a", "prompt": [{"start_s": 0, "prompt": "red"}, {"start_s": 60, "prompt": "blue"}]},
        "prompt: got one at 60 s, expected at most 4.875",
    ),
    "seed": ({"id": "a", "prompt": "red", "seed": -1}, "seed: got -1"),
    "fraction": ({"id": "a", "prompt": "red", "seed": 1.5}, "seed: got 1.5"),
    "seconds": ({"id": "a", "prompt": "red", "seconds": 0}, "seconds: got 0"),
    "endless": (b'{"id": "a", "prompt": "red", "seconds": Infinity}', "seconds: got inf"),
}


@pytest.mark.parametrize(("row", "start"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_has_its_reason_and_ends_nothing(tiny_plan, row, start):
    (_, good), (line, bad), (_, after) = read(
        tiny_plan, {"id": "g", "prompt": "red"}, row, {"id": "h", "prompt": "red"}
    )
    assert isinstance(good, Request) and isinstance(after, Request)
    assert isinstance(bad, BadRow) and line == bad.line == 2
    assert bad.error.startswith(start) and "\n" not in bad.error and len(bad.error) < 600


def test_a_bad_row_has_its_id(tiny_plan):
    bad = {"prompt": "red", "seconds": -1}
    rows = read(tiny_plan, {"id": "a", **bad}, {"id": "../x", **bad}, {"id": 7, **bad}, bad, b'{"id": "a"')
    assert [row.id for _, row in rows] == ["a", None, None, None, None]


def test_an_id_stands_once(tiny_plan):
    rows = read(tiny_plan, {"id": "a", "prompt": "pink"}, {"id": "a", "prompt": "red"}, {"id": "a", "prompt": "blue"})
    assert [isinstance(row, BadRow) for _, row in rows] == [True, False, True], "a bad row takes no id"
    assert rows[2][1].error.startswith("id: got a a second time")
