"""calibration.json: read strictly, written whole, refused on another plan than its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from videossm.calib.calibration import Calibration, CalibrationError, Source, engine_sha256
from videossm.runtime import Plan, UserError
from videossm.runtime.manifest import EngineSpec, File, Manifest

ENGINES = ("text_encoder", "step", "decoder")


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def make_plan(name="shapes", **contents):
    """A plan that is a manifest only; `contents` stand for what is in its files (step_data: step.onnx.data)."""
    files = {f"{engine}.onnx": engine for engine in ENGINES}
    files |= {f"{key.replace('_data', '.onnx.data')}": text for key, text in contents.items() if "_data" in key}
    files |= {f"{key}.onnx": text for key, text in contents.items() if "_data" not in key}
    values = {
        "name": name,
        "engines": {engine: EngineSpec(file=f"{engine}.onnx", inputs=(), outputs=()) for engine in ENGINES},
        "files": {file: File(sha256=sha256(text), size_bytes=len(text)) for file, text in files.items()},
    }
    return Plan(Path("none.plan"), Manifest.model_construct(**values))


def make_values():
    """What calibration.json holds."""
    passes = [
        {"index": 0, "value": 1.0, "amax": 2.54, "mean_square": 0.5},
        {"index": 1, "value": -0.5, "amax": 2.0, "mean_square": 0.25},
        {"index": None, "value": None, "amax": 0.0, "mean_square": 0.0},
    ]
    return {
        "format": "videossm-calibration",
        "version": 2,
        "precision": "int8",
        "source": {"name": "shapes", "engines": {"text_encoder": sha256("text_encoder"), "step": sha256("step")}},
        "settings": {
            "method": "percentile",
            "prompts": ["ein roter Kreis fällt"],
            "seeds": [2**64 - 1],
            "chunks": 12,
            "data": "rollouts",
            "smoothquant": 0.5,
            "quantize_attention": False,
        },
        "tensors": {
            "text_encoder": {
                "hidden": {
                    "amax": 1.27,
                    "low": None,
                    "scale": 0.01,
                    "zero_point": 0,
                    "passes": [],
                    "channel_amax": None,
                }
            },
            "step": {
                "blocks.0.x": {
                    "amax": 2.54,
                    "low": None,
                    "scale": 0.02,
                    "zero_point": 0,
                    "passes": passes,
                    "channel_amax": [2.54, 0.0],
                }
            },
        },
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calibration.json"


def write(path, values):
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def refused(path):
    with pytest.raises(CalibrationError) as error:
        Calibration.load(path)
    message = str(error.value)
    assert message.startswith("calibration: ") and "; " in message and "\n" not in message
    return message


def test_is_a_user_error():
    assert issubclass(CalibrationError, UserError)


def test_load(path):
    calibration = Calibration.load(write(path, make_values()))
    assert calibration.model_dump(mode="json") == make_values()
    assert calibration.tensors["step"]["blocks.0.x"].passes[0].amax == 2.54


def test_save_and_load(path):
    calibration = Calibration.load(write(path, make_values()))
    calibration.save(path)
    assert Calibration.load(path) == calibration
    text = path.read_text(encoding="utf-8")
    assert text == json.dumps(make_values(), indent=1, ensure_ascii=False) + "\n"
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_a_save_that_fails_keeps_the_old_file(path, monkeypatch):
    calibration = Calibration.load(write(path, make_values()))
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(CalibrationError, match=r"cannot write .* \(No space left on device\); choose a folder"):
        calibration.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_no_folder_to_save_in(path):
    calibration = Calibration.load(write(path, make_values()))
    with pytest.raises(CalibrationError, match=r"cannot write .*missing.* \(No such file or directory\); choose"):
        calibration.save(path.parent / "missing" / path.name)


def test_fp8(path):
    values = make_values() | {"precision": "fp8"}
    for tensors in values["tensors"].values():
        for tensor in tensors.values():
            tensor["scale"] = tensor["amax"] / 448
    assert Calibration.load(write(path, values)).precision == "fp8"


def test_a_scale_rounded_to_fp32_is_consistent(path):
    values = make_values()
    values["tensors"]["text_encoder"]["hidden"]["scale"] = 0.009999999776482582
    Calibration.load(write(path, values))


def test_no_such_file(path):
    assert "which cannot be read (No such file or directory)" in refused(path)


def test_a_folder(tmp_path):
    assert "which cannot be read (Is a directory)" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"{} {}"])
def test_no_json(path, content):
    path.write_bytes(content)
    assert "got no valid JSON (" in refused(path)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null"])
def test_no_object(path, content):
    path.write_bytes(content)
    assert refused(path).startswith(f"calibration: the whole: got {content.decode().replace('null', 'None')}, expected")


PARTS = {
    "": lambda values: values,
    "source.": lambda values: values["source"],
    "settings.": lambda values: values["settings"],
    "tensors.step.blocks.0.x.": lambda values: values["tensors"]["step"]["blocks.0.x"],
    "tensors.step.blocks.0.x.passes.1.": lambda values: values["tensors"]["step"]["blocks.0.x"]["passes"][1],
}


@pytest.mark.parametrize("part", PARTS)
def test_unknown_field(path, part):
    values = make_values()
    PARTS[part](values)["colour"] = 1
    assert refused(write(path, values)).startswith(f"calibration: {part}colour: got an unknown field, expected only")


@pytest.mark.parametrize(("part", "field"), [(part, field) for part in PARTS for field in PARTS[part](make_values())])
def test_missing_field(path, part, field):
    values = make_values()
    del PARTS[part](values)[field]
    assert refused(write(path, values)).startswith(f"calibration: {part}{field}: got nothing, expected this field")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("", "format", "other"),
        ("", "version", 1),
        ("", "precision", "int4"),
        ("settings.", "method", "mean"),
        ("settings.", "chunks", 0),
        ("settings.", "chunks", 3.5),
        ("settings.", "data", "films"),
        ("settings.", "smoothquant", 1.5),
        ("settings.", "quantize_attention", 1),
        ("tensors.step.blocks.0.x.", "low", 0.5),
        ("tensors.step.blocks.0.x.", "zero_point", 128),
        ("tensors.step.blocks.0.x.", "zero_point", 0.5),
        ("tensors.step.blocks.0.x.passes.1.", "index", -1),
        ("tensors.step.blocks.0.x.passes.1.", "amax", -1.0),
        ("tensors.step.blocks.0.x.passes.1.", "mean_square", float("nan")),
    ],
)
def test_wrong_value(path, part, field, value):
    values = make_values()
    PARTS[part](values)[field] = value
    assert refused(write(path, values)).startswith(f"calibration: {part}{field}: got {value!r}, expected")


def test_wrong_sha256(path):
    values = make_values()
    values["source"]["engines"]["step"] = "abc"
    assert refused(write(path, values)).startswith("calibration: source.engines.step: got 'abc', expected")


@pytest.mark.parametrize("field", ["scale", "amax"])
@pytest.mark.parametrize("value", [0.0, -0.02, float("nan"), float("inf"), float("-inf"), 1e-50, 1e39], ids=str)
def test_a_scale_that_is_none(path, field, value):
    values = make_values()
    values["tensors"]["step"]["blocks.0.x"][field] = value
    message = refused(write(path, values))
    assert message.startswith(f"calibration: tensors.step.blocks.0.x.{field}: got {value!r}, expected")


@pytest.mark.parametrize(
    ("precision", "scale", "expected"),
    [("int8", 0.0201, "0.02, which"), ("int8", 0.02 / 127, "0.02, which"), ("fp8", 0.02, "0.005669643")],
)
def test_a_scale_that_amax_does_not_give(path, precision, scale, expected):
    values = make_values() | {"precision": precision}
    del values["tensors"]["text_encoder"]
    values["tensors"]["step"]["blocks.0.x"]["scale"] = scale
    assert f"tensors.step.blocks.0.x.scale: got {scale:.7g}, expected {expected}" in refused(write(path, values))


def one_sided(**changes):
    """Values whose tensor runs from -0.05 to 2.5 in 255 steps of 0.01."""
    values = make_values()
    tensor = {"amax": 2.5, "low": -0.05, "scale": 0.01, "zero_point": -123, **changes}
    values["tensors"]["step"]["blocks.0.x"] |= tensor
    return values


def test_a_tensor_of_one_sign(path):
    tensor = Calibration.load(write(path, one_sided())).tensors["step"]["blocks.0.x"]
    assert (tensor.low, tensor.zero_point) == (-0.05, -123)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"zero_point": 0}, "got 0, expected -123, which follows from low -0.05 and amax 2.5"),
        ({"zero_point": -128}, "got -128, expected -123, which follows from low -0.05 and amax 2.5"),
        ({"amax": 1.27, "low": None}, "got -123, expected 0, which follows from low None and amax 1.27"),
    ],
    ids=["none", "the least", "of a symmetric tensor"],
)
def test_a_zero_point_that_does_not_follow(path, changes, expected):
    message = refused(write(path, one_sided(**changes)))
    assert f"tensors.step.blocks.0.x.zero_point: {expected}" in message


def test_a_scale_that_low_does_not_give(path):
    assert "tensors.step.blocks.0.x.scale: got 0.02, expected 0.01" in refused(write(path, one_sided(scale=0.02)))


def test_tensors_of_an_engine_without_a_source(path):
    values = make_values()
    del values["source"]["engines"]["step"]
    assert "tensors: got the engine step, expected one of source.engines (text_encoder)" in refused(write(path, values))


def test_is_frozen(path):
    calibration = Calibration.load(write(path, make_values()))
    with pytest.raises(ValidationError):
        calibration.precision = "fp8"


@pytest.fixture
def calibration(path):
    return Calibration.load(write(path, make_values()))


def test_check_its_own_plan(calibration):
    calibration.check(make_plan())
    calibration.check(make_plan(decoder="another"))  # is not quantised


def test_check_another_model(calibration):
    with pytest.raises(CalibrationError) as error:
        calibration.check(make_plan("wan"))
    assert str(error.value).startswith("calibration: got one of the plan 'shapes', expected one of 'wan'; choose")


@pytest.mark.parametrize("engine", ["text_encoder", "step"])
def test_check_another_plan(calibration, engine):
    with pytest.raises(CalibrationError) as error:
        calibration.check(make_plan(**{engine: "retrained"}))
    message = str(error.value)
    assert message.startswith(f"calibration: source.engines.{engine}: got sha256 {sha256(engine)[:16]}.., expected ")
    assert sha256("retrained")[:16] in message and message.endswith("; calibrate this plan")


def test_check_a_plan_without_the_engine(path):
    values = make_values()
    values["source"]["engines"]["memory"] = sha256("memory")
    with pytest.raises(CalibrationError, match="got the engine memory, expected one of the plan's"):
        Calibration.load(write(path, values)).check(make_plan())


def test_source_of_a_plan(calibration):
    plan = make_plan()
    source = Source.of(plan, ["text_encoder", "step"])
    assert source == calibration.source
    with pytest.raises(CalibrationError, match="got the engine memory"):
        Source.of(plan, ["memory"])


def test_weights_beside_a_graph_count(calibration):
    """Two models of one architecture then have the same graph."""
    first, second = (make_plan(step_data=text) for text in ("weights", "other weights"))
    assert len({engine_sha256(plan, "step") for plan in (make_plan(), first, second)}) == 3
    assert engine_sha256(first, "text_encoder") == engine_sha256(second, "text_encoder")


def test_check_tensors(calibration):
    calibration.check_tensors("step", ["blocks.0.x"])
    calibration.check_tensors("decoder", [])
    for engine, names in (("step", ["blocks.0.x", "hidden", "y"]), ("memory", ["hidden"])):
        with pytest.raises(CalibrationError) as error:
            calibration.check_tensors(engine, names)
        assert str(error.value).startswith(f"calibration: tensors.{engine}: got no hidden, expected its scale; ")
