"""What is built: by two compilers without a warning, small, exporting the interface alone, installed for others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import run
from videossm_c import BACKEND, CError, CPlan, Library

from videossm.runtime import Plan, Rollout

ROOT = Path(__file__).parents[3]
HEADERS = ROOT / "runtime" / "cpp" / "include"
CONSUMER = Path(__file__).with_name("consumer")
MOST_BYTES = 1_000_000
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", built, "--prefix", folder)
    return folder


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_header_is_c11(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "user.c").write_text("#include <videossm/videossm.h>\nint user(void) { return VIDEOSSM_OK; }\n")
    strict = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
    run(compiler, *strict, "-I", HEADERS, tmp_path / "user.c")


@pytest.mark.slow
def test_clang_has_no_warning(build: Callable[..., Path]) -> None:
    """-Wall -Wextra -Wpedantic -Werror, as for gcc, which the other tests build with."""
    if "clang" not in COMPILERS:
        pytest.skip("no clang: apt-get install clang")
    build("clang", "-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_C_COMPILER=clang", "-DVIDEOSSM_TESTS=ON")


def test_only_the_interface_is_exported(built: Path) -> None:
    lines = run("nm", "-D", "--defined-only", built / "libvideossm.so").splitlines()
    symbols = {line.split()[2].partition("@")[0] for line in lines if line.split()[1] != "A"}
    declared = set(re.findall(r"\b(videossm_\w+)\(", (HEADERS / "videossm" / "videossm.h").read_text()))
    assert symbols <= declared and {"videossm_plan_open", "videossm_rollout_next"} <= symbols
    assert len(symbols) == (HEADERS / "videossm" / "videossm.h").read_text().count("\nVIDEOSSM_API ")


@pytest.mark.slow
def test_without_backends_it_is_small_and_says_so(build: Callable[..., Path], tmp_path: Path, tiny_plan: Plan) -> None:
    folder = build("bare", *(f"-DVIDEOSSM_{part}=OFF" for part in ("ONNXRUNTIME", "TENSORRT", "EXAMPLES")))
    shutil.copy(folder / "libvideossm.so", tmp_path / "libvideossm.so")
    run("strip", tmp_path / "libvideossm.so")
    assert (tmp_path / "libvideossm.so").stat().st_size < MOST_BYTES
    with pytest.raises(CError, match=r"^backend: got a plan for onnxruntime, which this library was built") as caught:
        CPlan(Library(tmp_path / "libvideossm.so"), tiny_plan.path)
    assert caught.value.status == BACKEND


def example_of(header: str) -> str:
    """The program in the comment that videossm.hpp opens with."""
    comment = header[: header.index("*/")].splitlines()
    return "".join(f"{line[7:]}\n" for line in comment if line.startswith("       ") or not line)


def test_a_project_of_its_own_over_the_installed_tree(
    installed: Path,
    onnxruntime_root: Path,
    exported_plan: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = exported_plan("shapes")
    shutil.copytree(CONSUMER, tmp_path / "source")
    example = example_of((HEADERS / "videossm" / "videossm.hpp").read_text())
    (tmp_path / "source" / "main.cpp").write_text(example)
    run("cmake", "-S", tmp_path / "source", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", tmp_path / "build")
    found = {"LD_LIBRARY_PATH": str(onnxruntime_root / "lib")}
    line = run(tmp_path / "build" / "from_c", plan.path, **found)
    frame = next(Rollout(plan, "a red circle", 0)).frames[0, 0]
    assert line == f"{plan.manifest.stream.first_frames} frames, mean {frame.mean():.3f}\n"
    command, environment = [tmp_path / "build" / "from_c", "none"], {**os.environ, **found}
    wrong = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("plan: got none, which does not exist")
    monkeypatch.chdir(tmp_path)
    lines = run(tmp_path / "build" / "from_cpp", plan.path, **found).splitlines()
    assert len(lines) == 4 and (tmp_path / "stream.state").is_file()
    assert Rollout.resume(plan, tmp_path / "stream.state").prompts == ["a blue square moves left on black"]


def test_the_example_of_the_document_is_the_example_of_the_header() -> None:
    (example,) = re.findall(r"```cpp\n(.*?)```", (ROOT / "docs" / "embedding.md").read_text(), re.DOTALL)
    assert example.strip() == example_of((HEADERS / "videossm" / "videossm.hpp").read_text()).strip()


def test_pkg_config(installed: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    (folder,) = installed.rglob("pkgconfig")
    words = run("pkg-config", "--cflags", "--libs", "videossm", PKG_CONFIG_PATH=str(folder)).split()
    run("cc", CONSUMER / "main.c", "-o", tmp_path / "user", *words)


def test_generate_writes_the_video(built: Path, exported_plan: Callable[..., Plan], tmp_path: Path) -> None:
    import av

    plan = exported_plan("shapes")
    run(built / "generate", plan.path, "a red circle bounces on gray", 2, tmp_path / "x.y4m")
    with av.open(str(tmp_path / "x.y4m")) as container:
        video = container.streams.video[0]
        assert float(video.average_rate) == plan.manifest.stream.fps
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video)])
    assert len(frames) == 2 * plan.manifest.stream.fps
    rollout = Rollout(plan, "a red circle bounces on gray")
    expected = np.concatenate([chunk.frames[0] for chunk in rollout.play(len(frames))])[: len(frames)]
    assert np.abs(frames.astype(int) - expected).max() <= 4, "colours of 8 bits, there and back"


def test_embed_changes_the_prompt_and_ends(built: Path, exported_plan: Callable[..., Plan]) -> None:
    plan = exported_plan("shapes")
    player = subprocess.Popen(
        [built / "embed", plan.path, "a red circle bounces on gray", "a blue square moves left on black"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert player.stdin is not None and player.stdout is not None
    assert "▀" in player.stdout.readline()
    player.communicate("2\nq\n", timeout=60)
    assert player.returncode == 0


def test_a_tarball(built: Path, tmp_path: Path) -> None:
    run("cpack", "--config", built / "CPackConfig.cmake", "-B", tmp_path)
    (archive,) = tmp_path.glob("videossm-cpp-*.tar.gz")
    with tarfile.open(archive) as file:
        names = {Path(name).name for name in file.getnames()}
    assert {"videossm.h", "videossm.hpp", "libvideossm.so", "videossmConfig.cmake", "videossm.pc", "LICENSE"} <= names


def test_examples_are_short() -> None:
    for example in (ROOT / "examples" / "cpp").glob("*.cpp"):
        assert len(example.read_text().splitlines()) < 100, example.name
