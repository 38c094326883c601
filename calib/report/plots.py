"""The report's pictures, one idea each, as PNG. matplotlib is imported when the first is drawn."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from videossm.calib.report.growth import Growth, Series
from videossm.calib.report.parts import Course, LongCourse, PassError, Sensitivity
from videossm.calib.report.schema import AccuracyReport, ReportError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DPI = 110
WIDTH = 8.6  # inches, as heights are
BLUE, ORANGE, GREEN, PURPLE, GRAY = "#2a6fbb", "#d9601a", "#2c9360", "#8a56ac", "#8b939c"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GRAY)
STYLE: Any = {  # matplotlib's own type for it names every setting there is
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 28,  # the legend stands below it
    "axes.labelcolor": "#3c444d",
    "axes.edgecolor": "#b8bfc6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebee",
    "xtick.color": "#5a636d",
    "ytick.color": "#5a636d",
    "legend.frameon": False,
}
SPANS_DECADES = 20  # largest to smallest value from which an axis is logarithmic
SMOOTHED_CHUNKS = 11
PASSES_LEVEL = 20  # more of them have labels that stand upright
LAYERS_SHOWN = 40
KINDS_IN_A_ROW = 3
LABEL: Any = {"fontsize": 10, "color": STYLE["axes.labelcolor"]}


def draw(report: AccuracyReport) -> dict[str, bytes]:
    """PNG files by name, of the parts that `report` has.

    Raises ReportError where matplotlib is missing.
    """
    pictures = {
        "passes.png": passes_png(report.passes),
        "guided.png": course_png(report.guided, "What each chunk adds to the error"),
    }
    if report.guided.states:
        pictures["states.png"] = states_png(report.guided)
    if report.kind == "full" and report.free_running is not None:
        pictures["free_running.png"] = course_png(report.free_running, "Two rollouts that go their own ways")
    if report.sensitivity is not None and report.sensitivity.layers:
        pictures["sensitivity.png"] = sensitivity_png(report.sensitivity)
    return pictures


def passes_png(passes: Sequence[PassError]) -> bytes:
    """Relative error of what each pass changes: the mean over the chunks, and the worst chunk."""
    with _style():
        figure = _figure(3.9)
        axes = figure.subplots()
        places = np.arange(len(passes))
        means = np.array([each.relative_error.mean for each in passes])
        worst = np.array([each.relative_error.worst for each in passes])
        axes.vlines(places, means, worst, color=BLUE, alpha=0.35, linewidth=2)
        axes.plot(places, worst, "_", color=BLUE, markersize=11, markeredgewidth=2, label="worst chunk")
        axes.plot(places, means, "o", color=BLUE, markersize=7, label="mean over the chunks")
        place = int(np.argmax(means))
        axes.plot(place, means[place], "o", color=ORANGE, markersize=9, label=f"worst: {passes[place].name}")
        labels = ["commit" if each.commits else _number(each) for each in passes]
        axes.set_xticks(places, labels, fontsize=9, rotation=90 if len(passes) > PASSES_LEVEL else 0)
        axes.set(title="Error of one pass", ylabel="relative error of what it changes")
        axes.set_xlabel(f"{passes[0].scalar or 'number'} of the pass, first to last")
        axes.grid(axis="x", visible=False)
        _scale(axes, [*means, *worst])
        _legend(axes)
        return _png(figure)


def _number(of: PassError) -> str:
    return str(of.index) if of.value is None else f"{of.value:.2g}"


def course_png(course: Course, title: str) -> bytes:
    """Relative error of the samples over the chunks, if long with its growth, and below it the frames' PSNR."""
    with _style():
        figure = _figure(5.6)
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        errors = _array(course.relative_error)
        _line(upper, errors, BLUE)
        if isinstance(course, LongCourse) and course.growth is not None:
            _ends(upper, course.growth, course.chunks)
        _scale(upper, errors)
        upper.set(title=title, ylabel="relative error of samples")
        _legend(upper)
        _line(lower, _array(course.psnr_db), GREEN)
        lower.set(ylabel="PSNR of frames, dB", xlabel="chunk")
        return _png(figure)


def states_png(course: Course) -> bytes:
    """Relative error of every state over the chunks: a picture for each kind, a line for each layer."""
    rows = -(-len(course.kinds) // KINDS_IN_A_ROW)
    columns = min(len(course.kinds), KINDS_IN_A_ROW)
    depth = max(state.layer for state in course.states)
    with _style():
        figure = _figure(0.9 + 2.8 * rows)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        shown: list[float] = []
        for axes, kind in zip(grid.flat, course.kinds, strict=False):
            for state in course.of_kind(kind):
                colour, label = _shade(state.layer / max(depth, 1)), f"layer {state.layer}"
                chunks, smooth = _smooth(_array(state.relative_error))
                named = axes is grid.flat[0] and state.layer in (0, depth)
                axes.plot(chunks, smooth, color=colour, linewidth=1.5, label=label if named else "_")
                shown.extend(smooth.compressed())
            axes.set_title(kind, fontsize=10, fontweight="normal", pad=6)
            axes.margins(x=0.01)
        _scale(grid.flat[0], shown)
        for axes in grid.flat[len(course.kinds) :]:
            axes.set_visible(False)
        figure.supxlabel("chunk", **LABEL)
        figure.supylabel("relative error", **LABEL)
        figure.suptitle("Every state of B, given the video of A", x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.legend(loc="upper right", ncols=2, fontsize=9, handlelength=1.4)
        return _png(figure)


def sensitivity_png(sensitivity: Sensitivity) -> bytes:
    """Error with one layer alone quantised, the costliest first, in the colour of what each is kept in."""
    layers = sensitivity.ranked[:LAYERS_SHOWN]
    kinds = list(dict.fromkeys(layer.kept for layer in sensitivity.ranked))
    colours = dict(zip(sorted(kinds, key=lambda kept: kept == "fp32"), [BLUE, *COLOURS[2:]], strict=False))
    colours["fp32"] = ORANGE
    with _style():
        figure = _figure(1.5 + 0.21 * len(layers))
        axes = figure.subplots()
        for kept in kinds:
            places = [place for place, layer in enumerate(layers) if layer.kept == kept]
            errors = [layers[place].error for place in places]
            axes.barh(places, errors, color=colours.get(kept, GRAY), height=0.7, label=f"kept in {kept}")
        axes.set_yticks(range(len(layers)), [layer.layer for layer in layers], fontsize=8)
        axes.invert_yaxis()
        of = f", the costliest {len(layers)} of {len(sensitivity.layers)}" if sensitivity.layers[len(layers) :] else ""
        axes.set(title="Error with one layer alone quantised" + of, xlabel=sensitivity.measure)
        axes.grid(axis="y", visible=False)
        axes.margins(y=0.01)
        if _spans_decades([layer.error for layer in layers]):
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis)
        _legend(axes)
        return _png(figure)


def _style() -> Any:
    """A context with this module's settings. Raises ReportError where matplotlib is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        expected = "expected it installed to draw the report; pip install 'videossm[export]'"
        raise ReportError(f"report: got no matplotlib, {expected}") from None
    return matplotlib.rc_context(STYLE)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def _array(series: Series) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in series], np.float64)


def _line(axes: Axes, values: NDArray[np.float64], colour: str) -> None:
    """Each chunk as a point, and the running mean, which is those points where there are few."""
    points: Any = {"alpha": 0.4, "markersize": 3, "markeredgewidth": 0, "label": "each chunk"}
    axes.plot(np.arange(len(values)), values, "o", color=colour, **points)
    chunks, smooth = _smooth(values)
    label = f"mean of {SMOOTHED_CHUNKS}" if len(chunks) < len(values) else "_"
    axes.plot(chunks, smooth, color=colour, linewidth=1.8, label=label)
    axes.margins(x=0.01)


def _smooth(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], Any]:
    """Chunks and the running mean of what is defined around each; as they are where there are few."""
    wide = SMOOTHED_CHUNKS if len(values) >= 2 * SMOOTHED_CHUNKS else 1
    windows = np.ma.masked_invalid(np.lib.stride_tricks.sliding_window_view(values, wide))
    return np.arange(len(windows), dtype=np.float64) + (wide - 1) / 2, windows.mean(axis=1)


def _shade(depth: float) -> tuple[float, float, float]:
    """From light to dark blue with `depth`, 0 to 1."""
    light, dark = np.array([0.60, 0.77, 0.93]), np.array([0.05, 0.16, 0.36])
    red, green, blue = (light + depth * (dark - light)).tolist()
    return red, green, blue


def _ends(axes: Axes, growth: Growth, chunks: int) -> None:
    """The means at both ends as bars over the chunks that they are of."""
    label = f"mean of the first and last {growth.chunks}"
    for start, level in ((0, growth.first), (chunks - growth.chunks, growth.last)):
        axes.hlines(level, start, start + growth.chunks - 1, color=ORANGE, linewidth=2.5, label=label)
        label = "_"  # one entry for both


def _spans_decades(values: Iterable[float]) -> bool:
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > SPANS_DECADES * min(positive)


def _scale(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic axis where the values need one, else one from 0."""
    if _spans_decades(values):
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)


def _plain_ticks(axis: Axis) -> None:
    """0.01, 0.02, 0.05, 0.1 in place of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    """Between the title and the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.3, fontsize=9, handlelength=1.4)
