"""`videossm-inspect`: a table for people, an object for programs."""

from __future__ import annotations

import json

import pytest
from small_plan import rebuilt, sealed

from videossm.cost.cli import inspect
from videossm.runtime import Plan
from videossm.runtime.plan import write_manifest


def test_table_names_every_tensor_and_file(called, tiny_plan):
    code, out, err = called(inspect, tiny_plan.path)
    assert (code, err) == (0, "")
    manifest = tiny_plan.manifest
    for engine in manifest.engines.values():
        for tensor in (*engine.inputs, *engine.outputs):
            assert f" {tensor.name} " in out
    for file in manifest.files:
        assert f" {file} " in out
    assert (
        tiny_plan.identity in out
        and "passes     4 of step at sigma 1 0.8 0.4 0" in out
        and "32x32 at 8 frames/s" in out
    )


def test_json_holds_the_manifest_and_the_state(called, build_plan):
    plan = build_plan(batch=2)
    code, out, err = called(inspect, plan.path / "manifest.json", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["identity"] == plan.identity and values["stream"]["batch"] == 2
    assert [tensor["name"] for tensor in values["engines"]["memory"]["outputs"]] == ["memory_next.0", "memory_next.1"]
    token, head = 2 * 2 * 4, 2 * 4 * 4  # bytes of a head's token with batch 2: gates, keys
    assert values["state_bytes"] == {
        "ring": 2 * 18 * (2 * 2 * head + 2 * token) + 2 * 9 * 16 * 4,
        "carry": 2 * 2 * 2 * 16 * 4 + 2 * 16 * 4,
        "prompt": 2 * 2 * 2 * 5 * head,
    }


def test_what_it_was_built_for_and_takes(called, plan_copy):
    assert "target " not in called(inspect, plan_copy)[1], "ONNX graphs go anywhere"
    target = {
        "architectures": ["sm_89", "sm_120"],
        "later": True,
        "version_compatible": False,
        "weight_streaming": False,
    }
    rebuilt(plan_copy, backend="tensorrt-rtx", target=target)
    out = called(inspect, plan_copy)[1]
    assert "\ntarget     sm_89 sm_120 and later\n" in out and "\nmemory     at least " in out
    printed = json.loads(called(inspect, plan_copy, "--json")[1])
    assert printed["target"] == target and printed["device_bytes"] > sum(printed["state_bytes"].values()) / 2


def test_plan_without_memory(called, build_plan):
    _, out, _ = called(inspect, build_plan(memory=False).path, "--json")
    values = json.loads(out)
    assert "memory" not in values["engines"] and values["state_bytes"]["carry"] == 16 * 4


def with_report(folder, text):
    (folder / "report.json").write_text(text)
    return rebuilt(folder).path


def test_summary_of_the_report(called, plan_copy):
    summary = {"worst step": "step 0: cosine 0.9919", "error a chunk adds": 0.0213, "layers": 4}
    plan = with_report(plan_copy, json.dumps({"summary": summary, "steps": []}))
    _, out, _ = called(inspect, plan)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    start = lines.index("report")
    expected = ["worst step step 0: cosine 0.9919", "error a chunk adds 0.0213", "layers 4", "files"]
    assert lines[start + 1 : start + 5] == expected
    assert json.loads(called(inspect, plan, "--json")[1])["report_summary"] == summary


def test_plan_without_a_report(called, tiny_plan):
    assert "report" not in called(inspect, tiny_plan.path)[1]
    assert json.loads(called(inspect, tiny_plan.path, "--json")[1])["report_summary"] == {}


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"summary": {"a": [1]}}', '{"summary": {"a": NaN}}'])
def test_report_without_a_summary(refused, plan_copy, text):
    message = refused(inspect, with_report(plan_copy, text))
    assert message.startswith("report.json: summary: got something else or nothing, expected an object")


def test_a_name_that_commands_the_terminal(refused, plan_copy):
    values = json.loads((plan_copy / "manifest.json").read_text())
    (plan_copy / "manifest.json").write_bytes(sealed({**values, "name": "\x1b]0;owned\x07\x1b[2J"}))
    message = refused(inspect, plan_copy)
    assert message.startswith("manifest.json: name: got ") and message.isprintable()


def test_a_graph_of_garbage_whose_hash_is_right(refused, plan_copy):
    values = Plan.open(plan_copy).values()
    (plan_copy / "step.onnx").write_bytes(b"garbage")
    write_manifest(plan_copy, values)
    assert refused(inspect, plan_copy).startswith("step.onnx: got no ONNX graph (")


def test_no_plan(refused, tmp_path):
    assert refused(inspect, tmp_path / "none.plan").startswith("plan: got ")


def test_altered_plan(refused, plan_copy):
    (plan_copy / "step.onnx").write_bytes(b"")
    assert refused(inspect, plan_copy).startswith("step.onnx: size_bytes: got 0")


def test_what_a_chunk_costs(called, tiny_plan):
    code, out, err = called(inspect, tiny_plan.path, "--cost", "--device", "rtx4090", "--json")
    assert (code, err) == (0, "")
    values, manifest = json.loads(out), tiny_plan.manifest
    assert values["device"]["name"] == "GeForce RTX 4090" and values["engines"].keys() == manifest.engines.keys()
    for backend, chunk in values["chunk"].items():
        engines = values["engines"].values()
        of_runs = sum(engine["runs_per_chunk"] * engine[backend]["estimate_ms"] for engine in engines)
        assert chunk["estimate_ms"] == pytest.approx(of_runs)
        assert chunk["estimate_ms"] == pytest.approx(chunk["floor_ms"] + sum(chunk["above_floor_ms"].values()))
        assert 0 < chunk["floor_ms"] < chunk["estimate_ms"] <= chunk["estimate_reached_ms"]
    assert values["memory"]["state_bytes"] == json.loads(called(inspect, tiny_plan.path, "--json")[1])["state_bytes"]


def test_cost_for_people(called, tiny_plan):
    code, out, err = called(inspect, tiny_plan.path, "--cost")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "H200" in lines[1] and "no time below was measured" in lines[2]
    for name in tiny_plan.manifest.engines:
        assert sum(line.split()[0] == name for line in lines) == 3, "counts, and times by each backend"


def test_cost_of_an_unknown_device(refused, tiny_plan):
    assert refused(inspect, tiny_plan.path, "--cost", "--device", "gtx").startswith(
        "--device: got gtx, expected one of "
    )
    assert refused(inspect, tiny_plan.path, "--device", "h200").startswith("--device: got h200 without --cost")


def test_cost_of_engines_without_graphs(refused, plan_copy):
    target = {"architectures": ["sm_89"], "later": False, "version_compatible": False, "weight_streaming": False}
    rebuilt(plan_copy, backend="tensorrt", target=target)
    message = refused(inspect, plan_copy, "--cost")
    assert message.startswith("plan: got ") and "expected one of ONNX graphs" in message
