"""Opening is strict: whatever does not hold is one PlanError that names the file and the field."""

from __future__ import annotations

import json

import pytest
from small_plan import sealed

from videossm.runtime import Plan, PlanError
from videossm.runtime import plan as module
from videossm.runtime.plan import write_manifest


def edit(folder, change):
    """Applies `change` to the manifest's values."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_bytes(sealed(values))


def refused(folder):
    with pytest.raises(PlanError) as caught:
        Plan.open(folder)
    message = str(caught.value)
    assert "\n" not in message, "one line"
    return message


def test_open_by_folder_or_by_any_file_in_it(plan_copy):
    by_folder = Plan.open(plan_copy)
    for name in ("manifest.json", "step.onnx", "tokenizer.json"):
        assert Plan.open(plan_copy / name) == by_folder
    assert by_folder.identity == json.loads((plan_copy / "manifest.json").read_text())["checksum"]


def test_what_is_written_is_returned_as_if_opened(plan_copy):
    values = Plan.open(plan_copy).values()
    assert write_manifest(plan_copy, {**values, "lowering": "contrib"}) == Plan.open(plan_copy)


def test_a_hash_that_is_known_is_not_taken_again(plan_copy, monkeypatch):
    plan = Plan.open(plan_copy)
    values = plan.values()
    (plan_copy / "report.json").write_text("{}")
    hashed, whole = [], module._sha256
    monkeypatch.setattr(module, "_sha256", lambda path: hashed.append(path.name) or whole(path))
    assert write_manifest(plan_copy, values, plan.manifest.files).manifest.files.keys() > plan.manifest.files.keys()
    assert hashed == ["report.json"]
    Plan.open(plan_copy)


def test_files_that_are_not_listed_are_not_read(plan_copy):
    (plan_copy / ".DS_Store").write_bytes(b"x")
    Plan.open(plan_copy)


def test_no_such_plan(tmp_path):
    assert "which does not exist" in refused(tmp_path / "none.plan")


def test_folder_without_a_manifest(tmp_path):
    assert refused(tmp_path).startswith("manifest.json: missing in")


@pytest.mark.parametrize("name", ["step.onnx", "tokenizer.json", "decoder.onnx"])
def test_missing_file(plan_copy, name):
    (plan_copy / name).unlink()
    assert refused(plan_copy).startswith(f"{name}: missing in")


def test_truncated_file(plan_copy):
    content = (plan_copy / "step.onnx").read_bytes()
    (plan_copy / "step.onnx").write_bytes(content[:-1])
    expected = f"step.onnx: size_bytes: got {len(content) - 1}, expected {len(content)}; copy"
    assert refused(plan_copy).startswith(expected)


def test_altered_file(plan_copy):
    content = bytearray((plan_copy / "step.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (plan_copy / "step.onnx").write_bytes(content)
    assert refused(plan_copy).startswith("step.onnx: sha256: got ")


@pytest.mark.parametrize(
    "name", ["../step.onnx", "/etc/passwd", "sub/step.onnx", "..", "", ".hidden", "a\\b.onnx", "step.onnx\n"]
)
def test_path_outside_the_plan(plan_copy, name):
    edit(plan_copy, lambda values: values["engines"]["step"].update(file=name))
    message = refused(plan_copy)
    assert message.startswith("manifest.json: engines.step.file: got ") and "bare file name" in message


@pytest.mark.parametrize(
    "name",
    [
        "../step.onnx",
        "/etc/passwd",
        ".",
        "report/../step.onnx",
        "report/..",
        "report/",
        "report/a/b",
        "other/x",
        "report/.x",
    ],
)
def test_listed_file_outside_the_plan(plan_copy, name):
    edit(plan_copy, lambda values: values["files"].update({name: values["files"]["step.onnx"]}))
    message = refused(plan_copy)
    assert message.startswith(f"manifest.json: files.{name}: got ") and "bare file name" in message


def test_engines_lie_beside_the_manifest(plan_copy):
    edit(plan_copy, lambda values: values["engines"]["step"].update(file="report/step.onnx"))
    assert refused(plan_copy).startswith("manifest.json: engines.step.file: got 'report/step.onnx', expected a bare")


def rewrite(folder):
    """The manifest again, for what now lies in `folder`."""
    values = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, {name: value for name, value in values.items() if name not in ("files", "checksum")})


def test_a_report_in_its_folder(plan_copy):
    (plan_copy / "report").mkdir()
    (plan_copy / "report" / "steps.png").write_bytes(b"a picture")
    rewrite(plan_copy)
    plan = Plan.open(plan_copy)
    assert plan.manifest.files["report/steps.png"].size_bytes == 9
    assert Plan.open(plan_copy / "report" / "steps.png") == plan
    (plan_copy / "report" / "steps.png").write_bytes(b"other one")
    assert refused(plan_copy).startswith("report/steps.png: sha256: got ")
    (plan_copy / "report" / "steps.png").unlink()
    assert refused(plan_copy).startswith("report/steps.png: missing in")


@pytest.mark.parametrize("name", ["other/x.png", "report/deeper/x.png"])
def test_other_folders_are_not_written(plan_copy, name):
    (plan_copy / name).parent.mkdir(parents=True)
    (plan_copy / name).write_bytes(b"x")
    with pytest.raises(PlanError, match=f"files.{name}: got .* expected a bare file name inside the plan, or one in"):
        rewrite(plan_copy)


def test_newer_schema_version(plan_copy):
    edit(plan_copy, lambda values: values.update(schema_version=3, novelty=1))
    assert refused(plan_copy) == "manifest.json: schema_version: got 3, expected 2; upgrade videossm"


def test_older_schema_version(plan_copy):
    edit(plan_copy, lambda values: values.update(schema_version=1))
    assert refused(plan_copy) == "manifest.json: schema_version: got 1, expected 2; export the plan again"


@pytest.mark.parametrize("opening", [b"[", b'{"model": ', b'{"a":'], ids=["list", "model", "object"])
def test_manifest_nested_without_end(plan_copy, opening):
    (plan_copy / "manifest.json").write_bytes(opening * 100_000)
    assert refused(plan_copy).startswith("manifest.json: ")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": NaN}'])
def test_manifest_that_is_no_manifest(plan_copy, content):
    (plan_copy / "manifest.json").write_bytes(content)
    assert refused(plan_copy).startswith("manifest.json: ")


def test_write_manifest_lists_every_file(plan_copy):
    values = json.loads((plan_copy / "manifest.json").read_text())
    files = values.pop("files")
    values.pop("checksum")
    (plan_copy / "manifest.json").unlink()
    (plan_copy / "report.json").write_text("{}")
    write_manifest(plan_copy, values)
    manifest = Plan.open(plan_copy).manifest
    assert set(manifest.files) == {*files, "report.json"}
    assert manifest.files["report.json"].size_bytes == 2


def test_write_manifest_writes_nothing_that_could_not_be_opened(plan_copy):
    values = Plan.open(plan_copy).values()
    (plan_copy / "manifest.json").unlink()
    with pytest.raises(PlanError, match=r"manifest\.json: stream\.fps: got -1"):
        write_manifest(plan_copy, {**values, "stream": {**values["stream"], "fps": -1.0}})
    assert not (plan_copy / "manifest.json").exists()
