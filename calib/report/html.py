"""The report as one page that needs nothing else: styles and pictures are inside, scripts there are none."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from html import escape

from videossm.calib.report import tables
from videossm.calib.report.schema import AccuracyReport, FullReport

STYLE = """
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: #fff; color: #20262c;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: .9rem; border-top: 1px solid #dfe3e7; }
p { margin: .4rem 0 .9rem; max-width: 46rem; }
.under { color: #5a636d; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 0 .3rem 1.1rem; text-align: right; vertical-align: top; border-bottom: 1px solid #e8ebee; }
th { color: #5a636d; font-weight: 600; border-bottom-color: #b8bfc6; }
th.text, td.text { text-align: left; padding: .3rem 1.1rem .3rem 0; }
.facts td:first-child { color: #5a636d; white-space: nowrap; }
.summary { background: #f5f7f9; border-radius: 6px; padding: .4rem 1.1rem; }
.summary table { font-size: .98rem; }
.summary tr:last-child td { border-bottom: 0; }
img { display: block; max-width: 100%; height: auto; margin: .8rem 0; }
summary { cursor: pointer; color: #2a6fbb; font-size: .88rem; }
"""
KINDS = {
    "short": "A short report, without what takes hundreds of chunks; videossm-compare A B makes a full one",
    "full": "A full report",
}
GROWTH = {  # what a report of each kind says of it
    "short": "So few chunks do not say whether the error grows with the video; a full report does.",
    "full": "A ratio of last to first near 1 says that the precision holds however long the video gets.",
}


def page(report: AccuracyReport, pictures: Mapping[str, bytes]) -> str:
    """UTF-8 HTML. `pictures`: PNG files by name, as `plots.draw` makes them."""
    a, b, device = report.header.a, report.header.b, report.header.device
    title = escape(f"{b.name}: what {b.precision} costs against {a.precision}")
    summary = tables.facts((label, str(value)) for label, value in report.summary.items())
    sections = "\n".join(_sections(report, {name: _image(name, picture) for name, picture in pictures.items()}))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p class="under">{escape(f"{KINDS[report.kind]}. {report.header.date}, {device.text}")}</p>
<div class="summary">{summary}</div>
{sections}
</body>
</html>
"""


def _image(name: str, picture: bytes) -> str:
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def _section(name: str, title: str, text: str, *content: str) -> str:
    inside = "\n".join(content)
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n{inside}\n</section>'


def _sections(report: AccuracyReport, images: Mapping[str, str]) -> Iterator[str]:
    yield _section(
        "header",
        "What was compared",
        "A is the plan in high precision, B the plan that is judged; both come from the same checkpoint. A "
        "relative error is the length of the difference divided by that of A's value: 0 is equal, 0.01 one "
        "percent. A cosine of 1 is the same direction.",
        tables.header_table(report.header),
    )
    yield _section(
        "passes",
        "Each pass",
        "Both plans run one pass from the same sample and states; compared is what it changes of the sample, or of the "
        "commit the states that it leaves. Low precision shows at one pass before the others. Good: a mean cosine "
        f"above 0.99 at every pass, and no pass far from its neighbours. The worst here: {report.worst_pass.name}.",
        images["passes.png"],
        tables.passes_table(report),
    )
    yield from _chunk_sections(report, images)
    if report.kind == "full":
        yield from _judgement_sections(report)
    yield from _layer_sections(report, images)
    yield from _cost_sections(report)


def _chunk_sections(report: AccuracyReport, images: Mapping[str, str]) -> Iterator[str]:
    yield _section(
        "guided",
        "The error that a chunk adds",
        "Each chunk of B starts from A's states, so this is what one chunk costs, without what earlier ones did. "
        f"Good: a flat line. {GROWTH[report.kind]} With a PSNR above 40 dB hardly anybody sees a difference.",
        images["guided.png"],
        tables.course_table(report.guided),
    )
    if report.guided.states:
        yield _section(
            "states",
            "What is remembered of the same video",
            "What each chunk leaves in the window, and what is carried from chunk to chunk. B was given A's clean "
            "samples and kept states of its own from the first chunk on; where each pass keeps a state, B begins each "
            "chunk with A's instead. A line is a layer, the darker the deeper. Good: flat lines. What is carried "
            "matters most, for the window forgets an error and the other states keep it.",
            images["states.png"],
            tables.states_table(report.guided),
        )
    if report.kind == "full" and report.free_running is not None:
        yield _section(
            "free_running",
            "Rollouts on their own",
            "Here B goes on from its own states. The two part by nature, as two seeds would: a small difference "
            "early is another video later. So this error may rise until the videos have little in common, and says "
            "nothing of their quality; good is that it levels off. Whether B's video is as good is for an "
            "evaluation to say.",
            images["free_running.png"],
            tables.course_table(report.free_running),
            *([tables.states_table(report.free_running)] if report.free_running.states else []),
        )


def _judgement_sections(report: FullReport) -> Iterator[str]:
    if report.evaluation:
        yield _section(
            "evaluation",
            "Do the videos still show what was asked?",
            "Videos of both plans from the same prompts and seeds, judged by the same detector. Good: a loss of no "
            "more points than one video or two make, which is chance; a negative loss is a gain.",
            tables.evaluation_table(report.evaluation),
        )
    if report.calibration_comparison:
        yield _section(
            "calibration_comparison",
            "Ways to calibrate",
            "The same model and precision, with scales from other data. Rollouts show late chunks in every "
            "pass, first chunks only how videos begin, random inputs nothing that a model meets. Good: the data "
            "used for this plan has the highest cosine, the smallest error, and scores as high as any.",
            tables.calibration_table(report.calibration_comparison),
        )


def _layer_sections(report: AccuracyReport, images: Mapping[str, str]) -> Iterator[str]:
    if report.sensitivity is not None:
        yield _section(
            "sensitivity",
            "What each layer costs",
            f"One layer alone is quantised, and the plan's error measured: {report.sensitivity.measure}. The "
            "costliest layers go back to high precision until the error is within the budget; where all of them "
            "together are within it, none is measured alone. Good: few long bars, all of them of layers sent back.",
            images.get("sensitivity.png", ""),
            tables.sensitivity_table(report.sensitivity),
        )
    if report.skipped:
        yield _section(
            "skipped",
            "Layers left as they are",
            "These were no candidates, for the reason beside each. Good: only what is small, or what low precision "
            "is known to harm. Their part of the size and time stays as it was.",
            tables.skipped_table(report.skipped),
        )


def _cost_sections(report: AccuracyReport) -> Iterator[str]:
    yield _section(
        "sizes",
        "Size",
        "Files of both plans, but for reports. 8-bit weights take a quarter of the room of 32-bit ones, 16-bit "
        "weights half. What stays in high precision brings the whole plan's ratio nearer to 1 than that of its "
        "quantised layers.",
        tables.sizes_table(report.sizes),
    )
    if report.speed is not None:
        yield _section(
            "speed",
            "Speed",
            f"Time of a whole chunk. The two took turns for {report.speed.chunks} chunks of one run, so that "
            "whatever else the machine did hit both alike. Good: a ratio above 1x, which means that B is faster. "
            "The median is what to expect, the minimum what is possible.",
            tables.speed_table(report.speed),
        )
