"""What is the same on another processor: `python benchmarks/same_numbers.py PLAN .. --page docs/same-numbers.md`.

Computes noise, a rollout of each PLAN and, with --library, both scans; then all of it again in an emulator (Debian's
package qemu-user), and writes how far apart the two are between the markers in the page. A chunk of `shapes` takes
some 13 s there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import around, introduction, measured_on, table, write_between
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from videossm.plugins_trt import ScanLibrary
from videossm.runtime import Plan, Rollout
from videossm.runtime.noise import noise

Arrays = dict[str, NDArray[Any]]

BEGIN = "<!-- by same_numbers.py -->"
EMULATOR = "qemu-x86_64 -cpu Haswell"
NUMBERS = 1_000_000  # of noise
PROMPT, SEED = "a red circle bounces on gray", 7
SETS = ("generic", "avx2", "avx512")  # of instructions, that the scans are compiled for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", metavar="PLAN", nargs="*", type=Path)
    parser.add_argument("--library", type=Path, help="libvideossm_scans_cpu.so, as `make plugins` builds it")
    parser.add_argument("--chunks", type=int, default=6, help="of each rollout; 6")
    parser.add_argument("--emulator", default=EMULATOR, help=f"what a command is put behind; {EMULATOR}")
    parser.add_argument("--page", type=Path, help="with the markers that the table goes between")
    parser.add_argument("--results", type=Path, help="compute, and write the arrays here: how the emulator is called")
    args = parser.parse_args()
    if args.results:
        save_file(computed(args.plans, args.library, args.chunks), args.results)
        return
    if args.page is None:
        parser.error("--page: got none, expected one; name it")
    try:
        around(args.page, BEGIN)  # minutes of work follow
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        here = run_apart("", Path(folder, "here.safetensors"))
        there = run_apart(args.emulator, Path(folder, "there.safetensors"))
    rows = [*noise_rows(here, there), *plan_rows(here, there), *scan_rows(here, there)]
    text = [
        f"{introduction(measured_on(), 'same_numbers.py')} The other processor: `{args.emulator}`. Differences are "
        "relative, in the Frobenius norm.",
        table(["", "equal numbers", "difference", "colour values that differ", "by at most"], rows),
    ]
    write_between(args.page, BEGIN, "\n\n".join(text))


def run_apart(prefix: str, results: Path) -> Arrays:
    """What this very command computes behind `prefix`, in a process of its own."""
    subprocess.run([*shlex.split(prefix), sys.executable, *sys.argv, "--results", str(results)], check=True)
    return load_file(results)


def computed(plans: list[Path], library: Path | None, chunks: int) -> Arrays:
    """Results on this processor; the names of a plan's and the scans' are `<which>/<what>`."""
    results: Arrays = {"noise": noise(SEED, 0, 0, (NUMBERS,))}
    for path in plans:
        plan = Plan.open(path)
        rollout = Rollout(plan, PROMPT if plan.manifest.text else None, SEED, "cpu", threads=1)
        made = [(chunk.frames, rollout.sample) for chunk in islice(rollout, chunks)]
        name = f"{plan.manifest.name} in {plan.manifest.precision}"
        results[f"{name}/frames"], results[f"{name}/samples"] = map(np.stack, zip(*made, strict=True))
    if library:
        opened = ScanLibrary(library)
        for instructions in SETS:
            os.environ["VIDEOSSM_CPU"] = instructions
            try:
                results |= {f"{scan}/{instructions}": values for scan, values in scanned(opened).items()}
            except ValueError:  # the processor lacks these instructions
                break
    return results


def scanned(library: ScanLibrary) -> Arrays:
    """Output and final state, flat, of both scans of a chunk of `shapes`."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape, np.float32)

    def share(*shape: int) -> NDArray[np.float32]:
        return random.random(shape, np.float32)

    rows, gates = (1, 192, 4, 32), (1, 192, 4)
    gated = library.gated_delta_scan(
        normal(*rows),
        normal(*rows),
        normal(*rows),
        -0.1 * share(*gates),
        share(*gates),
        normal(1, 4, 32, 32),
        0.18,
        normalize_key=True,
        normalize_query=True,
    )
    channels, tokens, states = 64, 192, 16
    selective = library.selective_scan(
        normal(1, channels, tokens),
        normal(1, channels, tokens),
        -np.tile(np.arange(1, states + 1, dtype=np.float32), (channels, 1)),
        normal(1, states, tokens),
        normal(1, states, tokens),
        normal(1, channels, states),
        normal(channels),
        normal(1, channels, tokens),
        normal(channels),
        delta_softplus=True,
    )
    flat = {"gated delta rule": gated, "selective scan": selective}
    return {name: np.concatenate([part.ravel() for part in parts if part is not None]) for name, parts in flat.items()}


def noise_rows(here: Arrays, there: Arrays) -> Iterator[list[str]]:
    yield [f"{NUMBERS:,} numbers of noise", *compared(here["noise"], there["noise"]), "", ""]


def plan_rows(here: Arrays, there: Arrays) -> Iterator[list[str]]:
    """The first chunk, which starts from equal states, and the last."""
    for name in [key.removesuffix("/samples") for key in here if key.endswith("/samples")]:
        samples, frames = ([side[f"{name}/{what}"] for side in (here, there)] for what in ("samples", "frames"))
        for chunk in sorted({0, len(samples[0]) - 1}):
            pixels = np.abs(frames[0][chunk].astype(int) - frames[1][chunk])
            yield [
                f"{name}, clean sample of chunk {chunk}",
                *compared(samples[0][chunk], samples[1][chunk]),
                f"{np.mean(pixels > 0):.3%}",
                str(pixels.max()),
            ]


def scan_rows(here: Arrays, there: Arrays) -> Iterator[list[str]]:
    """Each set of instructions that both have, and what the best one of here gives beside the best one of there."""
    for scan in dict.fromkeys(key.partition("/")[0] for key in here if key.endswith(f"/{SETS[0]}")):
        for instructions in SETS:
            key = f"{scan}/{instructions}"
            if key in there:
                yield [f"{scan}, {instructions} on both", *compared(here[key], there[key]), "", ""]
        first, second = ([name for name in SETS if f"{scan}/{name}" in side][-1] for side in (here, there))
        if first != second:
            values = compared(here[f"{scan}/{first}"], there[f"{scan}/{second}"])
            yield [f"{scan}, {first} here, {second} there", *values, "", ""]


def compared(here: NDArray[Any], there: NDArray[Any]) -> list[str]:
    """How many numbers are equal, bit for bit, and the relative difference."""
    if np.array_equal(here, there):
        return ["all", "0"]
    difference = np.linalg.norm(here.astype(np.float64) - there) / np.linalg.norm(here)
    return [f"{np.mean(here == there):.0%}", f"{difference:.1e}"]


if __name__ == "__main__":
    main()
