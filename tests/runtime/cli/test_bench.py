"""`videossm-bench`: the measures are there and add up."""

from __future__ import annotations

import json

import pytest

from videossm.runtime.cli.bench import bench


def test_json(called, tiny_plan):
    code, out, err = called(bench, tiny_plan.path, "--chunks", 20, "--threads", 1, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["plan"] == "tiny" and result["chunks"] == 20
    assert result["device"] == "cpu" and result["device_usage"] is None
    assert 0 < result["ms_per_chunk_p50"] <= result["ms_per_chunk_p95"]
    assert 0 < result["outside_engines_share"] < 1
    engines = result["engine_ms_per_chunk"]
    assert engines.keys() == {"text_encoder", "step", "memory", "decoder"}
    assert engines["text_encoder"] == 0, "the prompt is encoded before"
    inside = sum(engines.values()) * result["chunks"]
    total = 1000 * result["chunks"] * 0.375 / result["realtime_factor"]
    assert inside == pytest.approx(total * (1 - result["outside_engines_share"]))
    assert result["time_to_first_frame_s"] > 0 and result["resident_bytes"] > 1e7


def test_table(called, tiny_plan):
    code, out, err = called(bench, tiny_plan.path, "--chunks", 3, "--prompt", "a red circle")
    assert (code, err) == (0, "")
    for row in ("first frame", "a chunk", "  step", "  memory", "outside engines", "real time", "resident"):
        assert f"\n{row}" in f"\n{out}"


@pytest.mark.parametrize("chunks", ["0", "-3"])
def test_no_chunks(refused, tiny_plan, chunks):
    assert refused(bench, tiny_plan.path, "--chunks", chunks).startswith(f"--chunks: got {chunks}, expected 1 or more")


def test_unknown_word(refused, tiny_plan):
    assert refused(bench, tiny_plan.path, "--prompt", "pink").startswith("prompt: got the unknown word 'pink'")
