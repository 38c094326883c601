"""The wheel holds the source tree and nothing else, and its runtime needs the base requirements and nothing else."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from videossm.models.shapes.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "export", "calib", "cost", "plugins_trt", "runtime", "serve", "batch", "commands")
COMMANDS = {
    f"videossm-{name}"
    for name in ("batch", "bench", "calibrate", "compare", "doctor", "export", "inspect", "run", "serve")
}
WEIGHTS_BYTES = 16e6  # of a checkpoint in git
LIMIT_BYTES = 300 * 2**20
OF_OLD_ONNXRUNTIME = ("mpmath", "sympy")  # Python 3.10's last one requires them, 61 MB, and does without to run a plan
PLATFORM = (platform.system(), platform.machine())
OF_SERVE_AND_BATCH = ("starlette", "uvicorn", "websockets", "prometheus_client", "ray", "fsspec", "pyarrow")
EXTRA = ("torch", "onnx", "onnxscript", "tokenizers", "transformers", *OF_SERVE_AND_BATCH)
FORBIDDEN = (*EXTRA, *(f"videossm.{folder}" for folder in ("batch", "calib", "export", "models", "serve")))


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree, so that the build neither sees nor leaves anything in the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", out]
    done = run(sys.executable, "-m", "pip", "wheel", *options, source)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="session")
def base_python(wheel: Path, metadata: Message, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel and its base requirements: this environment's copies, and no others."""
    environment = tmp_path_factory.mktemp("base")
    done = run(sys.executable, "-m", "venv", "--without-pip", environment)
    assert done.returncode == 0, done.stderr
    (site,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for needed in closure(metadata.get_all("Requires-Dist", [])).values():
        for name in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():  # two distributions may share a namespace
                (site / name).symlink_to(Path(str(needed.locate_file(name))))
    return environment / "bin" / "python"


def closure(
    requires: Iterable[str], extras: Iterable[str] = (), found: dict[str, Distribution] | None = None
) -> dict[str, Distribution]:
    """All distributions that `requires` bring, by requirement; of optional lines those of `extras`."""
    found = {} if found is None else found
    for requirement in map(Requirement, requires):
        if applies(requirement, extras) and f"{requirement.name}{requirement.extras}" not in found:
            needed = distribution(requirement.name)
            found[f"{requirement.name}{requirement.extras}"] = needed
            closure(needed.requires or (), requirement.extras, found)
    return found


def disk_bytes(path: Path) -> int:
    """As du counts a file: blocks of 4 KiB."""
    return -(-path.stat().st_size // 4096) * 4096 if path.is_file() else 0


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def test_the_wheel_holds_the_source_tree(wheel: Path) -> None:
    kept = ("*.py", "py.typed", "weights/*.safetensors", "page/*.*")
    files = [path.relative_to(ROOT) for folder in FOLDERS for p in kept for path in (ROOT / folder).rglob(p)]
    expected = {f"videossm/{file}" for file in files if not file.is_relative_to("runtime/cpp")}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected, f"missing: {sorted(expected - found)}, stray: {sorted(found - expected)}"


def test_the_wheel_declares_its_commands_and_extras(wheel: Path, metadata: Message) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        lines = archive.read(name).decode().splitlines()
    assert {line.split(" = ")[0] for line in lines if " = " in line} == COMMANDS
    extras = {"export", "tokenizers", "mamba", "rtx", "trt", "gpu", "serve", "ray", "dev"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    assert metadata["License-File"] == "LICENSE"


def test_no_folder_shadows_the_installed_package() -> None:
    assert not (ROOT / "videossm").exists()


def test_shipped_weights_are_small() -> None:
    assert max(path.stat().st_size for path in ROOT.glob("models/weights/*")) <= WEIGHTS_BYTES


def test_what_the_tests_need_is_pinned(metadata: Message) -> None:
    files = [
        (ROOT / "requirements" / name).read_text(encoding="utf-8") for name in ("dev.txt", "scans.txt", "serve.txt")
    ]
    lines = "\n".join(files).splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    wanted = [
        line
        for line in map(Requirement, metadata.get_all("Requires-Dist", []))
        if applies(line, ("export", "dev", "mamba", "serve", "ray"))
    ]
    for requirement in wanted:
        (pin,) = (pin for pin in pins if pin.name == requirement.name and applies(pin, ()))
        assert requirement.specifier.contains(str(pin.specifier).removeprefix("=="))


def test_the_base_install_runs_without_the_exporter(base_python: Path) -> None:
    script = f"""
import importlib, importlib.util, pkgutil, sys
import av, onnxruntime, safetensors.numpy, tqdm  # what it loads on demand
import videossm.runtime
for module in pkgutil.walk_packages(videossm.runtime.__path__, "videossm.runtime."):
    importlib.import_module(module.name)
print(videossm.runtime.__file__)
print([name for name in {FORBIDDEN!r} if name in sys.modules])
print([name for name in {EXTRA!r} if importlib.util.find_spec(name)])
"""
    done = run(base_python, "-c", script, cwd=base_python.parent)
    assert done.returncode == 0, done.stderr
    file, loaded, installed = done.stdout.splitlines()
    assert file.startswith(str(base_python.parents[1])), f"got {file}, expected the wheel's"
    assert loaded == "[]"
    assert installed == "[]", "the environment holds more than the base install"


def test_the_base_install_reads_the_tokenizer_of_shapes(base_python: Path, tmp_path: Path) -> None:
    build_tokenizer().save(str(tmp_path / "tokenizer.json"))
    script = f"""
from pathlib import Path
from videossm.runtime.manifest import Text
from videossm.runtime.prompt import PromptTokenizer
text = Text(length=4, padding_id=0, unknown="refuse", examples=())
print(PromptTokenizer(Path({str(tmp_path / "tokenizer.json")!r}), text).encode(["A red CIRCLE"])[0].tolist())
"""
    done = run(base_python, "-c", script, cwd=base_python.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[2, 5, 11, 0]]\n"


@pytest.mark.skipif(PLATFORM != ("Linux", "x86_64"), reason="the limit is for Linux x86-64")
def test_the_base_install_is_small(base_python: Path, metadata: Message) -> None:
    """By the lists of installed files; `make pythons` installs it and measures the folder."""
    sizes = {
        needed.name: sum(disk_bytes(Path(str(needed.locate_file(file)))) for file in needed.files or ())
        for needed in closure(metadata.get_all("Requires-Dist", [])).values()
        if needed.name not in OF_OLD_ONNXRUNTIME
    }
    (site,) = base_python.parents[1].glob("lib/python*/site-packages")
    files = [path for path in (site / "videossm").rglob("*") if "__pycache__" not in path.parts]
    # Bytecode is about as large as its source.
    sizes["videossm"] = sum(disk_bytes(path) * (2 if path.suffix == ".py" else 1) for path in files)
    assert sum(sizes.values()) <= LIMIT_BYTES, f"by distribution: {sizes}"


@pytest.mark.parametrize("module", ["runtime.cli.run", "cost.cli", "runtime.cli.bench"])
def test_the_base_install_has_working_commands(base_python: Path, module: str) -> None:
    done = run(base_python, "-m", f"videossm.{module}", "--help", cwd=base_python.parent)
    assert done.returncode == 0, done.stderr
    assert "PLAN" in done.stdout


@pytest.mark.parametrize(("command", "extra"), [("serve", "serve"), ("batch", "ray")])
def test_an_extra_command_names_its_extra(base_python: Path, command: str, extra: str) -> None:
    arguments = {"serve": ["a.plan"], "batch": ["a.jsonl", "-o", "out", "--plan", "a.plan"]}[command]
    done = run(base_python, "-m", f"videossm.{command}.cli", *arguments, cwd=base_python.parent)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"pip install 'videossm[{extra}]'" in done.stderr


def test_the_exporter_names_the_extra_that_it_needs(base_python: Path) -> None:
    script = "from videossm.export.cli import export; export.main(['test'])"
    done = run(base_python, "-c", script, cwd=base_python.parent)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'videossm[export]'" in done.stderr
