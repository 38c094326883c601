"""The report in a dozen lines, and how its figures are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from videossm.calib.report.growth import mean

if TYPE_CHECKING:  # schema.py makes a report's summary with this module
    from videossm.calib.report.parts import Score, SizePair
    from videossm.calib.report.schema import AccuracyReport

NONE = "-"


def summarise(report: AccuracyReport) -> dict[str, str | int | float]:
    """Labels and texts, the most telling first; parts that the report lacks are left out."""
    header, worst = report.header, report.worst_pass
    lines: dict[str, str | int | float] = {
        "precision": f"{header.b.precision} against {header.a.precision}",
        "measured": f"{len(header.seeds)} rollouts of {report.guided.chunks} chunks, {report.kind} report",
        "worst pass": f"{worst.name}: cosine {cosine(worst.cosine.mean)}, "
        f"relative error {figure(worst.relative_error.mean)}",
        "error a chunk adds": f"{figure(report.guided_error)} of the sample, mean of {report.guided.chunks} chunks",
    }
    if report.kind == "full" and (growth := report.guided.growth) is not None:
        lines["growth of that error"] = f"{ratio(growth.ratio)} from the first to the last {growth.chunks} chunks"
    psnr_db = mean(report.guided.psnr_db)
    if psnr_db is not None:
        lines["frames"] = f"PSNR {psnr_db:.1f} dB"
    if report.kind == "full":
        for at in dict.fromkeys(score.at for score in report.evaluation):
            lines[f"evaluation, {at}"] = _scores([score for score in report.evaluation if score.at == at])
    lines["size"] = _sizes(report.sizes.total)
    if report.sizes.quantised_weights is not None:
        lines["quantised weights"] = _sizes(report.sizes.quantised_weights)
    if report.speed is not None:
        a, b = report.speed.a, report.speed.b
        lines["speed"] = f"{ratio(report.speed.speedup)}, {a.median_ms:.1f} to {b.median_ms:.1f} ms a chunk"
    if report.sensitivity is not None:
        back = sum(len(fallback.layers) for fallback in report.sensitivity.fallback)
        ranked = len(report.sensitivity.layers)
        lines["layers kept back"] = f"{back} of {ranked}" if ranked else "none, as all of them hold the budget"
    lines["measured on"] = header.device.text
    return lines


def figure(value: float | None) -> str:
    """Three significant digits."""
    return NONE if value is None else f"{value:#.3g}".rstrip(".")


def cosine(value: float | None) -> str:
    return NONE if value is None else f"{value:.5f}"


def ratio(value: float | None) -> str:
    return NONE if value is None else f"{figure(value)}x"


def size(size_bytes: int) -> str:
    """Decimal units."""
    number = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if number < 999.5:  # which three digits would make 1000
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"


def points(difference: float) -> str:
    """Of percentages, with its sign."""
    return f"{difference:+.1f}" if round(difference, 1) else "0"


def _scores(scores: list[Score]) -> str:
    return ", ".join(f"{score.name} {score.b_percent:.1f}% ({points(-score.loss_points)})" for score in scores)


def _sizes(pair: SizePair) -> str:
    return f"{size(pair.a_bytes)} to {size(pair.b_bytes)}, {ratio(pair.ratio)}"
