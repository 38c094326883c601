from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from videossm.calib.report import FullReport, ReportError, ShortReport, SizePair, Sizes, read_report

OPTIONAL = ("free_running", "evaluation", "calibration_comparison", "sensitivity", "skipped", "speed")


def test_round_trip(report: FullReport) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert read_report(json.loads(text)) == report


def test_round_trip_of_a_short_report(short: ShortReport) -> None:
    read = read_report(short.to_dict())
    assert read == short and isinstance(read, ShortReport)


def test_a_short_report_has_no_growth(short: ShortReport, report: FullReport) -> None:
    """Nor the parts that take hundreds of chunks: there is no place for them."""
    assert "growth of that error" in report.summary and "growth of that error" not in short.summary
    assert report.guided.growth is not None and not hasattr(short.guided, "growth")
    for part in ("free_running", "evaluation", "calibration_comparison"):
        with pytest.raises(ReportError, match=f"^report.json: {part}: "):
            read_report({**short.to_dict(), part: report.to_dict()[part]})


def test_round_trip_without_the_optional_parts(build_report: Callable[..., FullReport]) -> None:
    report = build_report(**dict.fromkeys(OPTIONAL))
    assert read_report(report.to_dict()) == report


def drop(*path: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: walk(values, path[:-1]).pop(path[-1])


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: walk(values, path[:-1]).__setitem__(path[-1], value)


def walk(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


WRONG = {
    "passes: got nothing": ("passes", drop("passes")),
    "an unknown part": ("novelty", put("novelty", value=1)),
    "an unknown field": ("header.device.cores", put("header", "device", "cores", value=2)),
    "a newer version": ("schema_version", put("schema_version", value=4)),
    "a kind that there is not": ("the whole", put("kind", value="long")),
    "no kind": ("the whole", drop("kind")),
    "a number as text": ("passes.0.value", put("passes", 0, "value", value="1")),
    "a negative error": ("guided.relative_error.3", put("guided", "relative_error", 3, value=-0.1)),
    "a cosine above 1": ("passes.1.cosine.mean", put("passes", 1, "cosine", "mean", value=1.1)),
    "a percentage above 100": ("evaluation.0.b_percent", put("evaluation", 0, "b_percent", value=101.0)),
    "NaN": ("guided.cosine.0", put("guided", "cosine", 0, value=float("nan"))),
    "no date": ("header", put("header", "date", value="yesterday")),
    "a series too short": ("guided", put("guided", "psnr_db", value=[30.0])),
    "a state too long": ("free_running", put("free_running", "states", 0, "cosine", value=[1.0] * 25)),
    "no passes": ("passes", put("passes", value=[])),
    "no files": ("sizes.files", put("sizes", "files", value={})),
    "a summary of lists": ("summary.speed", put("summary", "speed", value=[1])),
}


@pytest.mark.parametrize(("field", "change"), WRONG.values(), ids=WRONG.keys())
def test_what_is_refused(report: FullReport, field: str, change: Callable[[dict[str, Any]], Any]) -> None:
    values = report.to_dict()
    change(values)
    with pytest.raises(ReportError) as caught:
        read_report(values)
    message = str(caught.value)
    assert message.startswith(f"report.json: {field}") and "\n" not in message


def test_a_part_cannot_be_made_with_a_field_that_is_not_there() -> None:
    with pytest.raises(ValidationError):
        SizePair(a_bytes=1, b_bytes=1, c_bytes=1)  # type: ignore[call-arg]


def test_the_worst_pass_is_that_of_the_largest_mean_error(report: FullReport) -> None:
    means = [each.relative_error.mean for each in report.passes[:-1]]  # a commit leaves states, no sample
    assert report.worst_pass.relative_error.mean == max(means)
    backwards = report.model_copy(update={"passes": (*report.passes[-2::-1], report.passes[-1])})
    assert backwards.worst_pass == report.worst_pass


def test_a_model_whose_only_pass_commits(report: FullReport) -> None:
    alone = report.model_copy(update={"passes": report.passes[-1:]})
    assert alone.worst_pass == report.passes[-1] and alone.worst_pass.name == "commit"


def test_a_pass_without_scalars_goes_by_its_number(report: FullReport) -> None:
    bare = report.passes[1].model_copy(update={"scalar": None, "value": None})
    assert (bare.name, report.passes[1].name) == ("pass 1", "pass 1 (sigma 0.8)")


def test_kinds_of_state(report: FullReport) -> None:
    assert report.guided.kinds == ("*.key", "*.value", "*.carried")
    assert [state.layer for state in report.guided.of_kind("*.carried")] == [0, 1, 2]


def test_derived_figures(report: FullReport) -> None:
    assert report.speed is not None and report.speed.speedup == 90 / 72
    assert report.sizes.total == SizePair(a_bytes=4_000_000, b_bytes=1_100_900)
    assert report.sizes.total.ratio == 1_100_900 / 4_000_000
    assert report.sizes.files["calibration.json"].ratio is None
    assert [score.loss_points for score in report.evaluation] == [0.5, -1.0]
    assert report.sensitivity is not None and [layer.rank for layer in report.sensitivity.ranked] == [1, 2, 3]


def test_the_summary_is_made_of_the_parts(report: FullReport) -> None:
    summary = report.summary
    assert summary["precision"] == "int8 against fp32"
    assert summary["measured"] == "2 rollouts of 24 chunks, full report"
    assert summary["worst pass"] == "pass 0 (sigma 1): cosine 0.99190, relative error 0.0900"
    assert summary["evaluation, 5 s"] == "colour 97.5% (-0.5)"
    assert summary["evaluation, 60 s"] == "colour 76.0% (+1.0)"
    assert summary["size"] == "4 MB to 1.1 MB, 0.275x"
    assert summary["speed"] == "1.25x, 90.0 to 72.0 ms a chunk"
    assert summary["layers kept back"] == "1 of 3"
    assert summary["measured on"] == "Xeon (made up), 2 threads, avx2 avx512_vnni"


def test_a_summary_of_ones_own_is_kept(build_report: Callable[..., FullReport]) -> None:
    assert build_report(summary={"verdict": "good", "error": 0.02}).summary == {"verdict": "good", "error": 0.02}


def test_the_summary_has_no_parts_that_the_report_lacks(build_report: Callable[..., FullReport]) -> None:
    files = {"denoise.onnx": SizePair(a_bytes=10, b_bytes=5)}
    summary = build_report(**dict.fromkeys(OPTIONAL), sizes=Sizes(files=files, quantised_weights=None)).summary
    expected = [
        "precision",
        "measured",
        "worst pass",
        "error a chunk adds",
        "growth of that error",
        "frames",
        "size",
        "measured on",
    ]
    assert list(summary) == expected
