"""The report's tables, as HTML. Every text that comes from a report is escaped here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from videossm.calib.report.growth import Series, growth, mean
from videossm.calib.report.parts import (
    CalibrationRow,
    Course,
    Header,
    LongCourse,
    PlanFacts,
    Score,
    Sensitivity,
    SizePair,
    Sizes,
    SkippedLayer,
    Speed,
)
from videossm.calib.report.schema import AccuracyReport
from videossm.calib.report.summary import NONE, cosine, figure, points, ratio, size


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """`columns` are the heads; the first `texts` of them hold words, the others numbers, set to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        opened = (f'<{tag} class="text">' if place < texts else f"<{tag}>" for place in range(len(cells)))
        shown = "".join(f"{start}{escape(cell)}</{tag}>" for start, cell in zip(opened, cells, strict=True))
        return f"<tr>{shown}</tr>"

    head, body = line("th", columns), "\n".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Labels and what stands beside them."""
    lines = (f'<tr><td class="text">{escape(a)}</td><td class="text">{escape(b)}</td></tr>' for a, b in rows)
    return '<div class="wide"><table class="facts">\n' + "\n".join(lines) + "\n</table></div>"


def details(what: str, content: str) -> str:
    """Shut until a reader opens it."""
    return f"<details><summary>{escape(what)}</summary>\n{content}\n</details>"


def header_table(header: Header) -> str:
    def plan(facts: PlanFacts) -> str:
        identity = "the plan that this report lies in" if facts.identity is None else f"identity {facts.identity}"
        return f"{facts.name}, {facts.precision}, {facts.backend}; {identity}"

    rows = [("A", plan(header.a)), ("B", plan(header.b))]
    if header.calibration is not None:
        of, alpha = header.calibration, header.calibration.smoothquant_alpha
        smooth = "no SmoothQuant" if alpha is None else f"SmoothQuant with alpha {alpha:g}"
        attention = "quantised too" if of.quantize_attention else "left as they are"
        rows.append(("calibration", f"{of.method} of {of.rollouts} rollouts of {of.chunks} chunks: {of.data}"))
        rows.append(("", f"{smooth}; attention's products {attention}"))
    if header.prompts:
        rows.append(("prompts", "; ".join(header.prompts)))
    rows.append(("seeds", ", ".join(str(seed) for seed in header.seeds)))
    return facts(rows)


def passes_table(report: AccuracyReport) -> str:
    scalar = next((each.scalar for each in report.passes if each.scalar is not None), None)
    columns = ["pass", *([scalar] if scalar else [])]
    columns += ["relative error", "worst", "at chunk", "cosine", "worst", "at chunk"]
    rows = []
    for each in report.passes:
        error, direction = each.relative_error, each.cosine
        row = ["commit" if each.commits else str(each.index)]
        row += [NONE if each.value is None else f"{each.value:.4g}"] if scalar else []
        row += [figure(error.mean), figure(error.worst), str(error.worst_chunk)]
        rows.append([*row, cosine(direction.mean), cosine(direction.worst), str(direction.worst_chunk)])
    return table(columns, rows)


def course_table(course: Course) -> str:
    """Mean and worst chunk of what a chunk's sample and frames lose, and of a long course the growth."""
    columns, along = ["", "mean", "worst", "at chunk"], _along
    if isinstance(course, LongCourse):
        ends = "" if course.growth is None else str(course.growth.chunks)
        columns += [f"first {ends}", f"last {ends}", "last / first", "per 100 chunks"]
        along = _along_with_growth
    rows = [
        along("relative error, sample", course.relative_error, max, figure),
        along("cosine, sample", course.cosine, min, cosine),
        along("PSNR, frames, dB", course.psnr_db, min, lambda value: NONE if value is None else f"{value:.1f}"),
    ]
    return table(columns, rows)


def states_table(course: Course) -> str:
    """A row for each kind of state; one for each layer's below, shut."""
    columns = ["state", "relative error", "worst layer", "at layer", "cosine", "worst layer"]
    rows = []
    for kind in course.kinds:
        states = course.of_kind(kind)
        errors = {state.layer: mean(state.relative_error) for state in states}
        worst = max(states, key=lambda state: errors[state.layer] or 0).layer
        cosines = [mean(state.cosine) for state in states]
        row = [kind, figure(mean(list(errors.values()))), figure(errors[worst]), str(worst)]
        rows.append([*row, cosine(mean(cosines)), cosine(min((c for c in cosines if c is not None), default=None))])
    return table(columns, rows) + details("every state", _layers_table(course))


def _layers_table(course: Course) -> str:
    columns, along = ["state", "layer", "relative error", "worst", "at chunk"], _along
    if isinstance(course, LongCourse):
        columns += ["first", "last", "last / first", "per 100 chunks"]
        along = _along_with_growth
    rows = []
    for state in course.states:
        name, *figures = along(state.kind, state.relative_error, max, figure)
        rows.append([name, str(state.layer), *figures, cosine(mean(state.cosine))])
    return table([*columns, "cosine"], rows)


def evaluation_table(scores: Iterable[Score]) -> str:
    rows = [
        [s.at, s.name, f"{s.a_percent:.1f}%", f"{s.b_percent:.1f}%", points(s.loss_points), str(s.videos)]
        for s in scores
    ]
    return table(["at", "as asked", "A", "B", "loss in points", "videos"], rows, texts=2)


def calibration_table(compared: Sequence[CalibrationRow]) -> str:
    names = list(dict.fromkeys(name for row in compared for name in row.scores))
    rows = [
        [row.data, row.method, cosine(row.worst_pass_cosine), figure(row.guided_error)]
        + [f"{row.scores[name]:.1f}%" if name in row.scores else NONE for name in names]
        for row in compared
    ]
    return table(["calibrated on", "method", "cosine, worst pass", "error a chunk adds", *names], rows, texts=2)


def sensitivity_table(sensitivity: Sensitivity) -> str:
    """What was sent back, round by round; every layer below, shut."""
    text = ""
    if sensitivity.budget is not None:
        rows = [
            [str(place), ", ".join(of.layers), figure(of.error_before), figure(of.error_after)]
            for place, of in enumerate(sensitivity.fallback, 1)
        ]
        rows.append(["budget", "", "", figure(sensitivity.budget)])
        text = table(["fallback", "layers sent back", "error before", "after"], rows, texts=2)
    rows = [
        [str(layer.rank), layer.layer, layer.engine, layer.kept, layer.reason, figure(layer.error)]
        for layer in sensitivity.ranked
    ]
    if not rows:
        return text
    every = table(["rank", "layer", "engine", "kept in", "reason", "error alone"], rows, texts=5)
    return text + details(f"all {len(rows)} layers", every)


def skipped_table(skipped: Iterable[SkippedLayer]) -> str:
    return table(["layer", "engine", "reason"], ([of.layer, of.engine, of.reason] for of in skipped), texts=3)


def sizes_table(sizes: Sizes) -> str:
    def row(name: str, pair: SizePair) -> list[str]:
        return [name, size(pair.a_bytes), size(pair.b_bytes), ratio(pair.ratio)]

    rows = [row(name, pair) for name, pair in sizes.files.items()]
    rows.append(row("together", sizes.total))
    if sizes.quantised_weights is not None:
        rows.append(row("weights of the quantised layers", sizes.quantised_weights))
    return table(["", "A", "B", "B / A"], rows)


def speed_table(speed: Speed) -> str:
    times = [("median of a chunk", speed.a.median_ms, speed.b.median_ms), ("minimum", speed.a.min_ms, speed.b.min_ms)]
    rows = [[name, f"{a:.2f} ms", f"{b:.2f} ms", ratio(a / b)] for name, a, b in times]
    for name, of in speed.engines.items():
        rows.append(
            [f"{name}, all chunks", f"{of.a_s:.3f} s", f"{of.b_s:.3f} s", ratio(of.a_s / of.b_s if of.b_s else None)]
        )
    return table(["", "A", "B", "A / B"], rows)


def _along(
    name: str, series: Series, worse: Callable[[Iterable[float]], float], text: Callable[[float | None], str]
) -> list[str]:
    """A row: mean, worst and its chunk."""
    values = [value for value in series if value is not None]
    if not values:
        return [name, *[NONE] * 3]
    worst = worse(values)
    return [name, text(mean(series)), text(worst), str(list(series).index(worst))]


def _along_with_growth(
    name: str, series: Series, worse: Callable[[Iterable[float]], float], text: Callable[[float | None], str]
) -> list[str]:
    """The same row, and means at both ends, their ratio, slope."""
    row, ends = _along(name, series, worse, text), growth(series)
    if ends is None:
        return [*row, *[NONE] * 4]
    grown = ratio(ends.ratio) if worse is max else ""  # what should be large tells nothing by its ratio
    return [*row, text(ends.first), text(ends.last), grown, f"{ends.slope_per_100_chunks:+.2g}"]
