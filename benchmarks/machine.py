"""What the scripts beside this one share: the machine that they measured on, and the pages that they write."""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from videossm.runtime.processor import probe_processor

END = "<!-- end -->"  # of what a script writes into a page, behind its own marker


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options `--out` and `--json`, in the namespace `out` and `json_out`."""
    parser.add_argument("--out", type=_writable, help="Markdown; stdout if not given")
    parser.add_argument("--json", type=_writable, dest="json_out")


def measured_on() -> dict[str, Any]:
    """The date in UTC and the machine, without its name: the start of every result."""
    return {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": machine()}


def machine() -> dict[str, Any]:
    import onnxruntime

    versions = {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
    return {"cpu": probe_processor().name, "threads": os.cpu_count() or 1, **versions}


def introduction(result: dict[str, Any], script: str) -> str:
    """First sentence of a page: what wrote it, when and on what."""
    on = result["machine"]
    where = f"{on['cpu']}, {on['threads']} threads, ONNX Runtime {on['onnxruntime']}"
    return f"Written by `benchmarks/{script}` on {result['date'][:10]}: {where}."


def write(result: dict[str, Any], text: str, out: Path | None, json_out: Path | None) -> None:
    """`text`, a page without its last newline, and `result` as JSON."""
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    if json_out:
        json_out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def write_between(page: Path, begin: str, text: str) -> None:
    """`text` in place of what is in `page` between `begin` and END. Raises ValueError."""
    before, after = around(page, begin)
    page.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def around(page: Path, begin: str) -> tuple[str, str]:
    """`page` up to `begin`, and from the END that follows. Raises ValueError where one of them is not there."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, _, rest = text.partition(begin)
    between, end, after = rest.partition(END)
    if not end or "<!--" in between:
        raise ValueError(f"page: got {page}, expected a file with {begin} and, as the next marker, {END}; add them")
    return before + begin, end + after


def table(head: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """Markdown; the first `texts` columns to the left, figures to the right."""
    rule = ["---" if index < texts else "---:" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def _writable(text: str) -> Path:
    """Minutes of work follow: a folder that is not there is refused before them."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"got {text}, expected a file in a folder that exists; create the folder")
    return path
