"""Installs the wheel from the package index for every supported Python that is here, and runs a plan with it.

A line for each. Exit code 1 if one fails: a command ends badly or says anything on stderr, warnings of all kinds
included, something is left in the user's folder, or the installation is over the limit. `make pythons` calls it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import click

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
COMMANDS = ("bench", "calibrate", "compare", "doctor", "export", "inspect", "run")
CHUNKS = 8
LIMIT_MB = 300  # of 2^20 bytes, as du -m counts; of Linux on x86-64
LIMITED = (platform.system(), platform.machine()) == ("Linux", "x86_64")
OF_THE_ENVIRONMENT = re.compile(r"pip|setuptools|pkg_resources|_distutils_hack|distutils-precedence|__pycache__")
# The last ONNX Runtime for Python 3.10 requires them, and does without to run a plan.
OF_OLD_ONNXRUNTIME = re.compile(r"sympy|isympy|mpmath")


class CheckError(Exception):
    """What is wrong with an installation."""


@click.command()
@click.argument("wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("plan", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_context
def main(context: click.Context, wheel: Path, plan: Path) -> None:
    """Checks WHEEL by a run of PLAN, which is of ONNX graphs in fp32 with standard operators alone."""
    failed = tried = 0
    for version in VERSIONS:
        python = interpreter(version)
        if python is None:
            click.echo(f"python {version}: skipped, as neither PATH nor pyenv has one that starts")
            continue
        tried += 1
        try:
            with TemporaryDirectory() as folder:
                click.echo(f"python {version}: {check(Path(folder), python, wheel.resolve(), plan.resolve())}, ok")
        except CheckError as error:
            failed += 1
            click.echo(f"python {version}: failed: {error}")
    context.exit(1 if failed or not tried else 0)


def interpreter(version: str) -> str | None:
    """One of `version` that starts: this one, PATH's, or pyenv's latest."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    patches = sorted(pyenv.glob(f"{version}.[0-9]*"), key=lambda folder: int(re.findall(r"\d+", folder.name)[2]))
    pyenvs = [folder / "bin" / "python" for folder in reversed(patches)]
    script = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    for place in filter(None, [sys.executable, shutil.which(f"python{version}"), *pyenvs]):
        asked = subprocess.run([place, "-c", script], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == version:  # a shim of pyenv's on PATH may stand for none
            return str(place)
    return None


def check(folder: Path, python: str, wheel: Path, plan: Path) -> str:
    """Installs and runs in `folder`: what is installed, its size, and the seconds of the run. Raises CheckError."""
    environment, home, video = folder / "environment", folder / "home", folder / "out.mp4"
    output(python, "-m", "venv", environment)
    output(environment / "bin" / "python", "-m", "pip", "install", "-qqq", wheel)
    size = sized(environment)  # now, as a run may add bytecode

    def call(warnings: str, *arguments: object) -> str:
        return output(environment / "bin" / "python", "-W", warnings, *arguments, home=home)

    home.mkdir()
    call("error", "-c", "import videossm.runtime")
    for command in COMMANDS:
        call("error", environment / "bin" / f"videossm-{command}", "--help")
    started = perf_counter()
    asked = ["--prompt", "a red circle bounces on gray", "--chunks", CHUNKS, "--json", "-o", video]
    report = json.loads(call("always", environment / "bin" / "videossm-run", plan, *asked))
    seconds = perf_counter() - started
    if report["chunks"] != CHUNKS or not video.stat().st_size:
        raise CheckError(f"videossm-run made {report['chunks']} chunks, expected {CHUNKS} and a video")
    if left := [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]:
        raise CheckError(f"the user's folder holds {', '.join(left)}, expected nothing")
    names = ("onnxruntime", "av", "numpy")
    script = f"import importlib.metadata as m; print(', '.join(name + ' ' + m.version(name) for name in {names}))"
    return f"{call('always', '-c', script).strip()}, {size}, {CHUNKS} chunks in {seconds:.1f} s"


def output(*command: object, home: Path | None = None) -> str:
    """What `command` prints; with `home` in nothing but an environment of its own. Raises CheckError."""
    variables = dict(os.environ)
    if home is not None:
        mine = ("ORT_", "PYTHON", "XDG_")
        variables = {name: value for name, value in variables.items() if not name.startswith(mine)}
        variables["HOME"] = str(home)
    words = [str(word) for word in command]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    if done.returncode or (home is not None and done.stderr):
        raise CheckError(f"{' '.join(words)} ended with {done.returncode} and said on stderr: {done.stderr.strip()}")
    return done.stdout


def sized(environment: Path) -> str:
    """The size of what is installed in `environment`. Raises CheckError if it is over the limit."""
    (site,) = environment.glob("lib/python*/site-packages")
    sizes = {path.name: disk_bytes(path) for path in site.iterdir() if not OF_THE_ENVIRONMENT.match(path.name)}
    whole, unused = sum(sizes.values()), sum(size for name, size in sizes.items() if OF_OLD_ONNXRUNTIME.match(name))
    text = f"{whole / 2**20:.0f} MB" + (f" ({unused / 2**20:.0f} of them sympy's)" if unused else "")
    if LIMITED and whole - unused > LIMIT_MB * 2**20:
        raise CheckError(f"size: got {text}, expected at most {LIMIT_MB}: {sizes}")
    return text


def disk_bytes(path: Path) -> int:
    """As du counts a file or folder."""
    return sum(part.lstat().st_blocks * 512 for part in (path, *path.rglob("*")))


if __name__ == "__main__":
    main()
