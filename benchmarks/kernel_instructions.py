"""Instructions of the CUDA scans' loops over tokens, as they are compiled, into docs/kernels.md. Needs no GPU.

`python benchmarks/kernel_instructions.py` compiles the kernels, reads their SASS with cuobjdump and counts the longest
loop of each: what a warp issues for a block of tokens. `--library` counts those of another build, to compare with.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kernel_resources import FOLDER, MANGLED, MANGLED_DTYPE, PAGE, BuildError, build, missing_tools
from machine import around, table, write_between
from scan_floors import BLOCK_TOKENS

BEGIN = "<!-- by kernel_instructions.py -->"
KERNEL, ARCHITECTURE = "gated_delta_scan", "90"
FUNCTION = re.compile(r"^\s+Function : (\w+)$")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_]+)([^;]*);")
TARGET = re.compile(r"0x([0-9a-f]+)")


@dataclass(frozen=True)
class Loop:
    """`dtype`, `key_dim` and `wanted` of the kernel; `operations`: how many there are of each in its longest loop."""

    dtype: str
    key_dim: int
    wanted: bool
    operations: Counter[str]

    @property
    def a_token(self) -> float:
        """Instructions of a warp."""
        return self.operations.total() / BLOCK_TOKENS[self.dtype]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="a library or cubin to count instead; prints, writes no page")
    args = parser.parse_args()
    program, missing = cuobjdump(), missing_tools()
    if program is None or (missing and not args.library):
        print(missing or "cuobjdump: got none on PATH or in triton, expected one; install it", file=sys.stderr)
        return 2
    if args.library:
        print(text_of(loops(dumped(program, args.library))))
        return 0
    try:
        around(PAGE, BEGIN)
        build(ARCHITECTURE)
    except (ValueError, BuildError) as error:
        print(error, file=sys.stderr)
        return 1
    write_between(PAGE, BEGIN, text_of(loops(dumped(program, FOLDER / ARCHITECTURE / "libvideossm_scans_cuda.so"))))
    return 0


def cuobjdump() -> str | None:
    """On PATH, or the one that triton brings along."""
    spec = find_spec("triton")
    beside = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else Path()
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=beside)


def dumped(program: str, library: Path) -> str:
    return subprocess.run([program, "-sass", library], capture_output=True, text=True, check=True).stdout


def loops(sass: str) -> list[Loop]:
    """Of every gated_delta_scan in the output of cuobjdump."""
    found, functions = [], re.split(r"(?m)^(?=\s+Function : )", sass)[1:]
    for text in functions:
        name = FUNCTION.match(text.splitlines()[0])
        mangled = MANGLED.match(name[1]) if name else None
        if mangled and mangled[1] == KERNEL:
            _, half, single, size, wanted = mangled.groups()
            loop = Loop(MANGLED_DTYPE[half or single], int(size), wanted == "1", longest_loop(text))
            found.append(loop)
    return sorted(found, key=lambda loop: (loop.key_dim, loop.wanted))


def longest_loop(text: str) -> Counter[str]:
    """The operations between the farthest backward branch of a function and its target, both with them."""
    lines = [found for line in text.splitlines() if (found := INSTRUCTION.match(line))]
    instructions = [(int(found[1], 16), found[2], found[3]) for found in lines]
    start, stop = 0, -1
    for address, operation, operands in instructions:
        target = TARGET.search(operands) if operation == "BRA" else None
        if target and int(target[1], 16) < address and address - int(target[1], 16) > stop - start:
            start, stop = int(target[1], 16), address
    return Counter(operation for address, operation, _ in instructions if start <= address <= stop)


def text_of(found: list[Loop]) -> str:
    rows: dict[str, dict[str, str]] = {}
    for loop in found:
        what = f"d_k {loop.key_dim}{', with output' if loop.wanted else ''}"
        total, products = loop.operations.total(), loop.operations["HMMA"]
        rows.setdefault(what, {})[loop.dtype] = f"{total} / {products} / {loop.a_token:.0f}"
    head = ["instructions a block / of them products / a token", *BLOCK_TOKENS]
    return table(head, [[what, *(of.get(name, "-") for name in BLOCK_TOKENS)] for what, of in rows.items()])


if __name__ == "__main__":
    sys.exit(main())
