"""Registers and spills of the CUDA kernels, as ptxas reports them, into docs/kernels.md. Needs nvcc and no GPU.

`python benchmarks/kernel_resources.py` builds the kernels for every architecture, one after the other, and writes the
page's tables: registers, spilled bytes, and how long the compiler took.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from machine import around, write_between

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "plugins_trt"
PAGE = ROOT / "docs" / "kernels.md"
FOLDER = ROOT / "build" / "kernels"
ARCHITECTURES = ("80", "86", "89", "90", "120")
TARGET = "videossm_scans_cuda"
BEGIN = "<!-- by kernel_resources.py -->"

MANGLED_DTYPE = {"f": "fp32", "Half": "fp16", "BFloat16": "bf16"}
COMPILING = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w?'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
MANGLED = re.compile(r"_ZN8videossm\d+(\w+?)I(?:NS_\d+(Half|BFloat16)E|(f))(?:Li(\d+)E)?(?:Lb([01])E)?E")


class BuildError(RuntimeError):
    """CMake's or the compiler's, with the errors that they printed."""


@dataclass(frozen=True)
class Kernel:
    name: str
    dtype: str
    size: int | None  # d_k of gated_delta_*, lanes of a channel of selective_scan
    wanted: bool | None  # an output, of gated_delta_*
    architecture: str
    registers: int
    stack_bytes: int
    spilled_bytes: int  # stored and loaded

    @property
    def what(self) -> str:
        size = "" if self.size is None else f", {'d_k' if self.wanted is not None else 'lanes'} {self.size}"
        return f"{self.name}{size}{', with output' if self.wanted else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, help="as in sm_90, without sm_")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go; `-`: stdout")
    args = parser.parse_args()
    into_page = str(args.page) != "-"
    try:
        if into_page:
            around(args.page, BEGIN)  # minutes of work follow
    except ValueError as error:
        parser.error(str(error))
    if missing := missing_tools():
        print(missing, file=sys.stderr)
        return 2
    kernels, seconds = [], {}
    for architecture in args.architectures:
        try:
            log, seconds[architecture] = build(architecture)
        except BuildError as error:
            print(error, file=sys.stderr)
            return 1
        kernels += parse(log)
    text = tables(kernels, seconds)
    if into_page:
        write_between(args.page, BEGIN, text)
    else:
        print(text)
    return 0


def missing_tools() -> str | None:
    """Why `build` cannot be called here, None where it can."""
    missing = [tool for tool in ("nvcc", "cmake") if shutil.which(tool) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)}: got none on PATH, expected nvcc and cmake; install CUDA's compiler and CMake"


def build(architecture: str, folder: Path = FOLDER) -> tuple[str, float]:
    """What the compiler printed, and its seconds; from the last build if no source has changed since.

    Raises BuildError.
    """
    folder = folder / architecture
    log, time = folder / "compiler.log", folder / "seconds"
    files = [path for part in ("kernels", "cmake", "common", "include") for path in (SOURCE / part).rglob("*.*")]
    if time.exists() and time.stat().st_mtime > max(path.stat().st_mtime for path in files):
        return log.read_text(encoding="utf-8"), float(time.read_text(encoding="utf-8"))
    time.unlink(missing_ok=True)
    _run("cmake", "-S", SOURCE, "-B", folder, f"-DVIDEOSSM_CUDA_ARCHITECTURES={architecture}-real")
    start = perf_counter()
    text = _run("cmake", "--build", folder, "--target", TARGET, "--clean-first")
    seconds = perf_counter() - start
    log.write_text(text, encoding="utf-8")
    time.write_text(f"{seconds:.1f}", encoding="utf-8")
    return text, seconds


def parse(log: str) -> list[Kernel]:
    """Raises ValueError for a kernel whose name or figures are not understood."""
    kernels = []
    for part in log.split("ptxas info    : Compiling")[1:]:
        compiling = COMPILING.match(f"Compiling{part}")
        spills, registers = SPILLS.search(part), REGISTERS.search(part)
        if not compiling or not spills or not registers:
            raise ValueError(f"log of ptxas: got {part[:300]!r}, expected a function's registers and spills")
        mangled, architecture = compiling.groups()
        name = MANGLED.match(mangled)
        if not name:
            raise ValueError(f"kernel: got {mangled}, expected one of the namespace videossm")
        kernel, half, single, size, wanted = name.groups()
        stack, stores, loads = map(int, spills.groups())
        kernels.append(
            Kernel(
                kernel,
                MANGLED_DTYPE[half or single],
                int(size) if size else None,
                wanted == "1" if wanted else None,
                architecture,
                int(registers[1]),
                stack,
                stores + loads,
            )
        )
    return kernels


def tables(kernels: list[Kernel], seconds: dict[str, float]) -> str:
    architectures = list(seconds)
    found = {(kernel.what, kernel.architecture, kernel.dtype): kernel for kernel in kernels}
    rows = ["| registers: fp32 / fp16 / bf16 | " + " | ".join(f"sm_{name}" for name in architectures) + " |"]
    rows.append("|---|" + "---:|" * len(architectures))
    for what in dict.fromkeys(kernel.what for kernel in sorted(kernels, key=_order)):
        cells = [
            " / ".join(_cell(found[what, name, dtype]) for dtype in MANGLED_DTYPE.values()) for name in architectures
        ]
        rows.append(f"| {what} | {' | '.join(cells)} |")
    rows.append("| seconds to compile all | " + " | ".join(f"{seconds[name]:.0f}" for name in architectures) + " |")
    spilled = [kernel for kernel in kernels if kernel.spilled_bytes or kernel.stack_bytes]
    rows += ["", f"{len(kernels)} kernels, of which {len(spilled) or 'none'} spill or have a stack."]
    return "\n".join(rows)


def _order(kernel: Kernel) -> tuple[str, int, bool]:
    return kernel.name, kernel.size or 0, bool(kernel.wanted)


def _cell(kernel: Kernel) -> str:
    return f"{kernel.registers}{f' ({kernel.spilled_bytes} B spilled)' if kernel.spilled_bytes else ''}"


def _run(*command: object) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = done.stdout.splitlines()
        said = [line for line in lines if "error" in line.lower()] or lines[-10:]
        raise BuildError("\n".join([f"{' '.join(words)}: got exit code {done.returncode}", *said]))
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
