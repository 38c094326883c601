"""What may be wrong with a family of the user's own: one line that names what to mend, exit code 2, nothing lost."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from videossm.export.cli import export
from videossm.models.family import Deployment, Engine, Family, ModelError, Pass, State, Text, Window, find_family
from videossm.models.scans.operators import gated_delta_scan
from videossm.runtime import Plan

TORCH = "engine pixels: torch.onnx cannot trace it ("
MEND = "; mend the model's Deployment"
Refused = Callable[..., str]


@pytest.fixture
def refused(small_plan_in: Callable[[str], Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused(load, *options)`: the line that the export of that family ends in, where an older plan was."""
    out = tmp_path / "engine.plan"
    shutil.copytree(small_plan_in("contrib").path, out)
    before = Plan.open(out).identity

    def line(load: object, *options: object) -> str:
        module = ModuleType("bad_family")
        module.load = load  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bad_family", module)
        words = ["7", "--family", "bad_family:load", "--force", "-o", str(out), *map(str, options)]
        result = CliRunner().invoke(export, words)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert result.stderr.count("\n") == 1, f"one line, not {result.stderr!r}"
        assert Plan.open(out).identity == before
        assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"], "no debris"
        return result.stderr.rstrip("\n")

    return line


@pytest.fixture
def deployment() -> Deployment:
    return find_family("7", "linear_video:load").load("7", {"layers": 1}, False)


def changed(deployment: Deployment, name: str, **fields: Any) -> Deployment:
    """With other fields of the engine `name`."""
    engines = [replace(e, **fields) if e.name == name else e for e in deployment.engines]
    return replace(deployment, engines=engines)


def without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


def with_calls_in_a_cycle(deployment: Deployment) -> Deployment:
    """Two engines before the passes, each of which reads what the other writes."""
    one = torch.zeros(1, 4)
    calls = [
        Engine(
            mine, nn.Identity(), (one,), {f"{mine}.in": f"state.{other}"}, {f"{mine}.out": f"state.{mine}"}, "before"
        )
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    states = dict(deployment.states) | {"a": State("chunk"), "b": State("chunk")}
    return replace(deployment, engines=[*deployment.engines, *calls], states=states)


STRUCTURE: dict[str, tuple[Callable[[Deployment], Deployment], str]] = {
    "an input that is not named": (
        lambda d: changed(d, "denoiser", inputs=without(d.engines[0].inputs, "t_next")),
        "engine denoiser: example: got 5 tensors, expected 4, one for each of inputs in their order; ",
    ),
    "an input without a source": (
        lambda d: changed(d, "pixels", inputs={"x": ""}),
        "engine pixels: inputs['x']: got , expected one of sample, noise, clean, pass.<scalar>, ",
    ),
    "a source that is not there yet": (
        lambda d: changed(d, "denoiser", inputs={**d.engines[0].inputs, "x": "clean"}),
        "engine denoiser: inputs['x']: got clean, expected one that is there when ",
    ),
    "an output that nothing takes": (
        lambda d: changed(d, "denoiser", outputs={**d.engines[0].outputs, "x_next": "samples"}),
        "engine denoiser: outputs['x_next']: got samples, expected one of sample, state.<name>, frames" + MEND,
    ),
    "an output with the target of another": (
        lambda d: changed(d, "denoiser", outputs={**d.engines[0].outputs, "0.z_next": "state.0.S"}),
        "states['0.z']: got no engine that writes it, expected an output with target state.0.z; ",
    ),
    "two outputs with one target": (
        lambda d: replace(
            changed(d, "denoiser", outputs={**d.engines[0].outputs, "0.z_next": "state.0.S"}),
            states=without(d.states, "0.z"),
        ),
        "engine denoiser: outputs: got state.0.S 2 times, expected each once" + MEND,
    ),
    "one name for an input and an output": (
        lambda d: changed(d, "pixels", outputs={"x": "frames"}),
        "engine pixels: outputs: got x among inputs and outputs, expected names of one tensor each" + MEND,
    ),
    "a state that nothing writes": (
        lambda d: replace(d, states={**d.states, "lost": State("carry")}),
        "states['lost']: got no engine that writes it, expected an output with target state.lost; ",
    ),
    "a state that is not declared": (
        lambda d: replace(d, states=without(d.states, "0.S")),
        "engine denoiser: inputs['0.S']: got state.0.S, expected one of states: 0.z" + MEND,
    ),
    "a state of no kind": (
        lambda d: replace(d, states={**d.states, "0.S": State("cache")}),
        "states['0.S'].kind: got 'cache', expected: Input should be 'prompt', 'chunk', 'ring' or 'carry'" + MEND,
    ),
    "a ring without a window": (
        lambda d: replace(d, states={**d.states, "0.S": State("ring")}),
        "states['0.S'].kind: got ring, expected another kind, as window is null" + MEND,
    ),
    "states that no pass commits": (
        lambda d: replace(d, passes=[replace(each, commits=False) for each in d.passes]),
        "states['0.S']: got 0.S, which passes write and none commits, expected a last pass that commits" + MEND,
    ),
    "calls in a cycle": (
        with_calls_in_a_cycle,
        "engine a: inputs['a.in']: got state.b, expected ",
    ),
    "a pass that lacks a scalar": (
        lambda d: replace(d, passes=[d.passes[0], Pass("denoiser", {"t": 0.6}), *d.passes[2:]]),
        "passes[1].scalars: got no t_next, expected the scalar that engine denoiser: inputs['t_next'] reads" + MEND,
    ),
    "a pass of no engine": (
        lambda d: replace(d, passes=[Pass("denoise", {}), *d.passes]),
        "passes[0].engine: got denoise, expected one of engines: denoiser, pixels" + MEND,
    ),
    "a call at no moment": (
        lambda d: changed(d, "pixels", when="finally"),
        "engine pixels: when: got 'finally', expected: Input should be 'prompt', 'before', 'evict', 'after', ",
    ),
    "two engines of one name": (
        lambda d: replace(d, engines=[d.engines[0], replace(d.engines[1], name="denoiser")]),
        "engine denoiser: got 2 engines of that name, expected one; ",
    ),
    "a window that is all sink": (
        lambda d: replace(d, window=Window(chunks=2, sink=2, chunk_frames=1)),
        "window.sink: got 2, expected less than window.chunks = 2" + MEND,
    ),
    "frames of another size": (
        lambda d: replace(d, stream=replace(d.stream, later_frames=4)),
        "engine pixels: when: got after, expected an engine after_first and one after_later, as the first chunk has ",
    ),
    "a text without its tokenizer": (
        lambda d: replace(d, text=Text("", 4)),
        "text.tokenizer: got no readable tokenizer (",
    ),
    "no stream": (
        lambda d: replace(d, stream=None),  # type: ignore[arg-type]
        "stream: got a NoneType, expected a Stream" + MEND,
    ),
    "a config that JSON cannot hold": (
        lambda d: replace(d, config={"path": Path()}),
        "config: got what JSON cannot hold (Object of type PosixPath is not JSON serializable), expected plain types; ",
    ),
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_a_deployment_that_does_not_fit_together(
    case: str, deployment: Deployment, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is traced."""
    monkeypatch.setattr("videossm.export.build.trace", lambda *arguments: pytest.fail("it is traced"))
    change, message = STRUCTURE[case]
    assert refused(lambda *given: change(deployment)).startswith(message)


class Other(nn.Module):
    """Gives back what `make` makes of the sample."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def to_frames(x: Tensor) -> Tensor:
    return x.new_zeros((1, 3, 32, 48, 3), dtype=torch.uint8) + x.sum().to(torch.uint8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: to_frames(x)[:, :2],
            "engine pixels: outputs['video'].shape: got [1, 2, 32, 48, 3], expected [1, 3, ",
        ),
        (lambda x: to_frames(x).float(), "engine pixels: outputs['video'].dtype: got float32, expected uint8" + MEND),
        (lambda x: (to_frames(x), x), "engine pixels: outputs: got 2 tensors from the module, "),
        (lambda x: [], "engine pixels: "),
        (lambda x: to_frames(x @ x), TORCH + "RuntimeError: Expected size for first two dimensions of "),
        (lambda x: to_frames(x if x.sum() > 0 else -x), TORCH + "GuardOnDataDependentSymNode: Could not guard on "),
    ],
    ids=["shape", "dtype", "two tensors", "none", "an error of torch", "a condition on values"],
)
def test_a_module_that_does_something_else(
    make: Callable[[Tensor], Any], message: str, deployment: Deployment, refused: Refused
) -> None:
    pixels = changed(deployment, "pixels", module=Other(make))
    assert refused(lambda *given: pixels).startswith(message)


def scan(dtype: torch.dtype, scale: float) -> Callable[[Tensor], Tensor]:
    def make(x: Tensor) -> Tensor:
        q = x.flatten(2)[..., None, :].to(dtype)  # [1, 3, 1, d]
        state = q.new_zeros((1, 1, q.shape[-1], q.shape[-1]), dtype=torch.float32)
        output, _ = gated_delta_scan(q, q, q, q[..., 0], q[..., 0], state, scale)
        return to_frames(output)

    return make


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Other(scan(torch.float32, 0.0)),
            r"engine pixels: GatedDeltaScan node '.*': got scale 0, expected another; use ",
        ),
        (Other(scan(torch.float64, 1.0)), r"engine pixels: GatedDeltaScan node '.*': got type double for its input "),
    ],
    ids=["scale 0", "float64"],
)
def test_a_scan_that_no_lowering_has(module: nn.Module, message: str, deployment: Deployment, refused: Refused) -> None:
    pixels = changed(deployment, "pixels", module=module)
    line = refused(lambda *given: pixels, "--lowering", "contrib")
    assert re.match(message, line), line


def raising(error: Exception) -> Callable[..., Deployment]:
    def load(*given: object) -> Deployment:
        raise error

    return load


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            raising(KeyError("layers")),
            "--family: bad_family:load failed (KeyError: 'layers' in test_bad_input.py, line ",
        ),
        (raising(ModelError("depth: got 3, expected 2; change it")), "depth: got 3, expected 2; change it"),
        (lambda *given: None, "--family: got a NoneType from bad_family:load, expected a Deployment; return one"),
        (lambda: None, "--family: got a NoneType from bad_family:load, expected a Deployment; return one"),
        (lambda one, two: None, "--family: bad_family:load failed (TypeError: "),
        (7, "--family: got bad_family:load, a int, expected a Family, a Deployment or a function; name one"),
        (
            Family("bad", (), lambda source: True, raising(OSError("no file"))),
            "--family: bad_family:load failed (OSErr",
        ),
    ],
    ids=["an error", "its own words", "nothing", "nothing from nothing", "another function", "a number", "a Family"],
)
def test_a_family_that_gives_no_deployment(load: object, message: str, refused: Refused) -> None:
    assert refused(load).startswith(message)


@pytest.mark.parametrize("options", [("--set", "layers=1"), ("--height", 64), ("--random-weights",)])
def test_a_deployment_has_no_options(options: tuple[object, ...], deployment: Deployment, refused: Refused) -> None:
    name = "random-weights" if len(options) == 1 else "layers" if options[0] == "--set" else "height"
    assert refused(deployment, *options).startswith(f"{name}: got it with a Deployment, expected none, as it is ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def load(:\n", "SyntaxError: "),
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name' in broken.py, "),
        ("1 / 0\n", "ZeroDivisionError: division by zero in broken.py, line 1"),
        ("", "AttributeError: module 'broken' has no attribute 'load'"),
        (None, "ModuleNotFoundError: No module named 'broken'"),
    ],
    ids=["syntax", "an import of its own", "an error", "no such name", "no such module"],
)
def test_a_module_that_cannot_be_imported(
    source: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is not None:
        (tmp_path / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken", None)
    result = CliRunner().invoke(export, ["7", "--family", "broken:load", "-o", str(tmp_path / "engine.plan")])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert result.stderr.startswith(f"--family: got broken:load, which cannot be imported ({message}")
    lacking = "nothing_of_that_name" in message
    assert result.stderr.endswith("; install nothing_of_that_name\n" if lacking else "finds the module (PYTHONPATH)\n")
    assert not (tmp_path / "engine.plan").exists()


def test_a_family_without_a_colon() -> None:
    with pytest.raises(ModelError, match=r"^--family: got linear_video, expected .* or package.module:name; change it"):
        find_family("7", "linear_video")
