"""How sessions are configured: one place for all of them, and int8 products that are right on every processor."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from videossm.runtime.backends import session
from videossm.runtime.backends.session import EXACT_INT8, INT8_PRODUCT, NATIVE_THREADS, NO_INT8_FUSIONS, session_options

ROOT = Path(__file__).parents[3]
FOLDERS = ("benchmarks", "calib", "examples", "export", "models", "plugins_trt", "runtime", "tests", "training")
PLACE = "runtime/backends/session.py"
ORACLE = "tests/builders/oracle.py"  # which stands on the plan format alone
SCRIPT = Path(__file__).with_name("int8_products.py")
EXACT = 1e-6  # relative error in the Frobenius norm; the sums are exact, their scaling to fp32 is not
WRONG = 0.1


@pytest.mark.parametrize(("threads", "number"), [(None, 0), (3, 3)])
def test_threads_are_the_callers_or_onnx_runtimes(threads, number):
    assert session_options("fp32", threads).intra_op_num_threads == number


def entry(options, name):
    """Of `options`, None where it is not set."""
    try:
        return options.get_session_config_entry(name)
    except RuntimeError as error:
        assert "does not have configuration with key" in str(error)
        return None


@pytest.mark.parametrize(("precision", "expected"), [("fp32", None), ("int8", None), ("fp8", "1")])
def test_only_fp8_goes_without_the_fusions(precision, expected):
    """They are what makes int8 fast."""
    assert entry(session_options(precision, 1), NO_INT8_FUSIONS) == expected


@pytest.mark.parametrize(("saturates", "expected"), [(True, "1"), (False, None)])
def test_only_where_int8_saturates_are_weights_made_uint8(saturates, expected, monkeypatch):
    """It costs a fifth of the time where nothing saturates."""
    monkeypatch.setattr(session, "int8_saturates", lambda: saturates)
    assert entry(session_options("int8", 1), EXACT_INT8) == expected


@pytest.mark.parametrize(("threads", "expected"), [(2, "2"), (None, None)])
def test_operators_are_told_of_the_threads(native_scans, threads, expected):
    """They cannot ask for them, and would share their work out for all of a machine's processors."""
    assert entry(session_options("fp32", threads), NATIVE_THREADS) == expected


def test_the_product_that_is_tried():
    tensors = {"a": TensorProto.UINT8, "b": TensorProto.INT8, "y": TensorProto.INT32}
    values = [helper.make_tensor_value_info(name, kind, None) for name, kind in tensors.items()]
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "g", values[:2], values[2:])
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=4)
    assert onnx.load_from_string(INT8_PRODUCT) == expected


def session_calls(source):
    """(what is called, its line, has it options) of all calls that make a session or options."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("InferenceSession", "SessionOptions"):
                with_options = len(node.args) > 1 or any(word.arg == "sess_options" for word in node.keywords)
                yield name, node.lineno, with_options


def test_every_session_is_configured_in_one_place():
    """Options are made there alone, and no session goes without."""
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    calls = {(str(file.relative_to(ROOT)), *call) for file in files for call in session_calls(file.read_text("utf-8"))}
    assert {file for file, name, *_ in calls if name == "SessionOptions"} == {PLACE, ORACLE}
    sessions = [call for call in calls if call[1] == "InferenceSession"]
    assert sessions and not [call for call in sessions if not call[-1]]


def test_all_ways_to_make_a_session_are_seen():
    source = (
        "ort.InferenceSession(a)\nInferenceSession(a, b)\nort.InferenceSession(a, sess_options=b)\nx.SessionOptions()"
    )
    assert [with_options for *_, with_options in session_calls(source)] == [False, True, True, False]


@pytest.mark.parametrize("processor", ["this", "emulated"])
def test_int8_products_are_those_of_whole_numbers(processor, request):
    """Without VNNI, ONNX Runtime adds pairs of products in 16 bits and lets them saturate, if nothing forbids it."""
    python = [sys.executable] if processor == "this" else request.getfixturevalue("emulated_python")
    done = subprocess.run([*python, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    errors = found["errors"]
    assert all(error["ours"] < EXACT for error in errors.values()), errors
    if processor == "emulated" and not found["vnni"]:  # shows that these products can be wrong at all
        assert all(errors[name]["plain"] > WRONG for name in errors if name != "two activations"), errors
