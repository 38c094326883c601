"""The page and the bars of the scans in gpu_session.py."""

from __future__ import annotations

from typing import Any

from machine import table
from scan_floors import DTYPES

OF_FLOOR = 0.6  # at least, of SelectiveScan's long scan
COUNTED = ("bytes", "tensor cores", "fp32")  # what the bar's floor is of; special functions stand beside it
LONG = {"tokens": 16384, "channels": 4096, "states": 16}

Bar = dict[str, Any]
Row = dict[str, Any]


def judge(result: dict[str, Any]) -> list[Bar]:
    """`passed` is None for what this run could not judge; `detail` says why."""
    bars = [_correct(result), *(_sanitizer(result, tool) for tool in ("memcheck", "racecheck"))]
    for scan in ("gated_delta", "selective_scan"):
        bars += [_faster(result, scan, peer) for peer in result["peers"][scan]]
    return bars + [_of_floor(result, dtype) for dtype in DTYPES]


def _correct(result: dict[str, Any]) -> Bar:
    name, rows = "within the tolerance of float64: whole, split, in place", result.get("checks")
    if not rows:
        return {"name": name, "passed": None, "detail": f"not run, {result['cases']} cases"}
    wrong = [row["case"] for row in rows if not row["passed"]]
    return {"name": name, "passed": not wrong, "detail": f"{len(rows)} cases, {len(wrong)} wrong"}


def _sanitizer(result: dict[str, Any], tool: str) -> Bar:
    rows = [row for row in result.get("sanitizer", []) if row["tool"] == tool]
    passed, detail = (rows[0]["passed"], rows[0]["summary"]) if rows else (None, "not run")
    return {"name": f"compute-sanitizer {tool} is clean", "passed": passed, "detail": detail}


def _faster(result: dict[str, Any], scan: str, peer: Row) -> Bar:
    name, rows = f"{scan} faster than {peer['name']} at VideoSSM's shapes", result[scan]
    ratios = [(row["peers"][peer["name"]]["ratio"], row) for row in rows if peer["name"] in row.get("peers", {})]
    if not ratios:
        return {"name": name, "passed": None, "detail": peer["missing"] or _reason(rows, peer["name"])}
    least, worst = min(ratios, key=lambda pair: pair[0])
    return {"name": name, "passed": least > 1, "detail": f"{len(ratios)} shapes, least {least:.2f} x at {_what(worst)}"}


def _reason(rows: list[Row], peer: str) -> str:
    reasons = {row["left_out"][peer] for row in rows if peer in row.get("left_out", {})}
    return "; ".join(sorted(reasons)) or "not run"


def _of_floor(result: dict[str, Any], dtype: str) -> Bar:
    sizes = LONG | {"dtype": dtype}
    name = f"selective_scan in {dtype} reaches {OF_FLOOR:.0%} of the floor of bytes and FLOPs at 16384 x 4096 x 16"
    rows = [row for row in result["selective_scan"] if "ms" in row and sizes.items() <= row.items()]
    if not rows:
        return {"name": name, "passed": None, "detail": "not run"}
    row = rows[0]
    times = ", ".join(f"{of} {_us(ms)}" for of, ms in row["times_ms"].items())
    of_counted = max(row["times_ms"].get(name, 0) for name in COUNTED) / row["ms"]
    detail = f"{of_counted:.0%}, {row['of_floor']:.0%} of the longest: {_us(row['ms'])} us, floors in us: {times}"
    return {"name": name, "passed": of_counted >= OF_FLOOR, "detail": detail}


def line(bar: Bar) -> str:
    return f"{ {True: 'PASS', False: 'FAIL', None: 'not judged'}[bar['passed']] }: {bar['name']}: {bar['detail']}"


def markdown(result: dict[str, Any]) -> str:
    on = result["rates"]
    rates = (
        f"Floors by rates of {on['device']} ({on['source']}): {on['bytes_per_s'] / 1e12:.2f} TB/s, tensor cores "
        + ", ".join(f"{rate / 1e12:.0f} in {dtype}" for dtype, rate in on["tensor_flops_per_s"].items())
        + f" TFLOP/s, {on['fp32_per_s'] / 1e12:.1f} T fp32 instructions and {on['special_per_s'] / 1e12:.2f} T special "
        "functions a second."
    )
    first = "# The scans on a GPU" if result["device"] else "# The scans' floors on a GPU: nothing was measured"
    parts = [first, result["introduction"], "\n".join(f"- {line(bar)}" for bar in result["bars"]), rates]
    for wanted, title in ((True, "GatedDeltaScan with output"), (False, "GatedDeltaScan, state only")):
        rows = [row for row in result["gated_delta"] if row["wanted"] is wanted]
        parts.append(_grid(rows, ("tokens", "heads", "dim"), title))
    parts.append(_grid(result["selective_scan"], ("tokens", "channels", "states"), "SelectiveScan"))
    for scan in ("gated_delta", "selective_scan"):
        parts += _beside(result, scan)
    return "\n\n".join(parts)


def _grid(rows: list[Row], sizes: tuple[str, ...], title: str) -> str:
    """A line for each size, a column for each type: the time and how much of it the floor is, or the floor alone."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(" x ".join(str(row[size]) for size in sizes), {})[row["dtype"]] = _cell(row)
    cells = [[size, *(of[dtype] for dtype in DTYPES)] for size, of in lines.items()]
    return table([f"{title}: {' x '.join(sizes)}", *(f"{dtype}, us" for dtype in DTYPES)], cells)


def _cell(row: Row) -> str:
    if "ms" in row:
        return f"{_us(row['ms'])} ({row['of_floor']:.0%} of the floor)"
    flops = row["tensor_flops"]
    operations = f"{_short(flops / 1e9)} GFLOP" if flops else f"{_short(row['special'] / 1e9)} G special"
    return f"{_us(row['floor_ms'])} ({row['bound']}): {_short(row['bytes'] / 1e6)} MB, {operations}"


def _us(ms: float) -> str:
    return _short(1000 * ms)


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _beside(result: dict[str, Any], scan: str) -> list[str]:
    names = [peer["name"] for peer in result["peers"][scan]]
    rows = [row for row in result[scan] if row.get("peers")]
    if not rows:
        return []
    lines = [[_what(row), _us(row["ms"]), *(_of_peer(row["peers"].get(name)) for name in names)] for row in rows]
    return [table([f"{scan} at VideoSSM's shapes", "ours, us", *(f"{name}, us" for name in names)], lines)]


def _of_peer(found: Row | None) -> str:
    return f"{_us(found['ms'])} ({found['ratio']:.2f} x)" if found else "-"


def _what(row: Row) -> str:
    if "heads" in row:
        return (
            f"{row['tokens']} x {row['heads']} x {row['dim']} {row['dtype']}{'' if row['wanted'] else ', state only'}"
        )
    return f"{row['tokens']} x {row['channels']} x {row['states']} {row['dtype']}"
