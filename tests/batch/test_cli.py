"""videossm-batch before it starts Ray: what is wrong is told at once. Whole jobs: test_ray.py."""

from __future__ import annotations

import json

import pytest

from videossm.batch import Folder, make_video, read_rows
from videossm.batch.cli import batch
from videossm.runtime import LoadedPlan

pytest.importorskip("ray", reason="no ray: make test installs it")


@pytest.fixture
def command(tiny_plan, tmp_path, capfd):
    """`command(lines, *options)`: exit code, stdout, stderr."""

    def run(lines, *options, output=tmp_path / "out"):
        (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
        with pytest.raises(SystemExit) as ended:
            batch.main([str(tmp_path / "prompts.jsonl"), "-o", str(output), "--plan", str(tiny_plan.path), *options])
        return ended.value.code, *capfd.readouterr()

    return run


def test_bad_rows_alone_need_no_ray(command, tmp_path):
    code, out, err = command(["nonsense", '{"id": "a", "prompt": "pink"}'], "--json")
    assert code == 2 and json.loads(out)["errors"] == 2
    assert "2 rows: 0 done before, 2 bad, 0 to make" in err and "line 2: prompt: got the unknown word 'pink'" in err
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [1, 2]


def test_what_is_done_needs_no_ray(command, tiny_plan, tmp_path):
    row = '{"id": "a", "prompt": "red", "seconds": 0.5}'
    ((_, request),) = read_rows([row.encode()], tiny_plan)
    with LoadedPlan(tiny_plan) as loaded:
        result = make_video(loaded, request, Folder(str(tmp_path / "out")))
    code, out, _ = command([row], "--json")
    assert code == 0 and json.loads(out)["rows"] == [{"line": 1, **result}]
    code, _, err = command([row.replace("red", "blue")])
    assert code == 2 and "of another prompt, seed, length or plan" in err


def test_wrong_places(command, tiny_plan, tmp_path):
    for output, start in {
        tiny_plan.path / "videos": "output: got",
        tmp_path / "none" / "videos": "output: got",
        "nothing://bucket": "output: got nothing://bucket, which fsspec cannot open",
    }.items():
        code, _, err = command(['{"id": "a", "prompt": "red"}'], output=output)
        assert code == 2 and err.startswith(start) and err.count("\n") == 1, err
    code, _, err = command([])
    assert code == 2 and "without a row" in err
