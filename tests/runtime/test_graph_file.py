"""A graph reads no file that its plan does not list, wherever in it a tensor may hide."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from videossm.runtime import Plan, PlanError, graph_file
from videossm.runtime.graph_file import FIELDS, check_graph_file, external_locations
from videossm.runtime.plan import write_manifest

OUT = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])


def outside(location="secret.data", **more):
    """A tensor whose values lie in the file `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"offset": "0", "location": location, "length": "8", **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse(values=None, indices=None):
    inside = numpy_helper.from_array(np.zeros(2, np.float32), "v")
    return onnx.SparseTensorProto(values=values or inside, indices=indices or inside, dims=[2])


def graph(nodes=(), initializer=(), **more):
    return helper.make_graph(list(nodes), "g", [], [OUT], list(initializer), **more)


def constant(**attributes):
    """A node with attributes of any type."""
    return helper.make_node("Constant", [], ["y"], **attributes)


def function(node=None, default=None):
    made = onnx.FunctionProto(name="f", domain="d", node=[node] if node else [])
    if default is not None:
        made.attribute_proto.append(helper.make_attribute("value", default))
    return made


def branch(kind, names, within):
    """A node of subgraphs, each `within`."""
    return helper.make_node(kind, [], ["y"], **dict.fromkeys(names, within))


def model(within=None, **more):
    return helper.make_model(within or graph(), opset_imports=[helper.make_opsetid("", 20)], **more)


def training(**graphs):
    made = model()
    made.training_info.add(**graphs)
    return made


def deep(levels, within):
    """A tensor in the innermost of so many Ifs."""
    for _ in range(levels):
        within = graph([branch("If", ["then_branch"], within)])
    return within


HIDDEN = {
    "initializer": lambda: model(graph(initializer=[outside()])),
    "values of a sparse initializer": lambda: model(graph(sparse_initializer=[sparse(values=outside())])),
    "indices of a sparse initializer": lambda: model(graph(sparse_initializer=[sparse(indices=outside())])),
    "tensor attribute": lambda: model(graph([constant(value=outside())])),
    "list of tensors": lambda: model(graph([constant(values=[outside(), outside()])])),
    "sparse attribute": lambda: model(graph([constant(sparse_value=sparse(values=outside()))])),
    "list of sparse tensors": lambda: model(graph([constant(values=[sparse(indices=outside())])])),
    "list of graphs": lambda: model(graph([constant(graphs=[graph(), graph(initializer=[outside()])])])),
    "If": lambda: model(graph([branch("If", ["then_branch", "else_branch"], graph(initializer=[outside()]))])),
    "Loop": lambda: model(graph([branch("Loop", ["body"], graph([constant(value=outside())]))])),
    "Scan": lambda: model(graph([branch("Scan", ["body"], graph(sparse_initializer=[sparse(outside())]))])),
    "30 Ifs": lambda: model(deep(30, graph(initializer=[outside()]))),
    "function": lambda: model(functions=[function(constant(value=outside()))]),
    "default of a function": lambda: model(functions=[function(default=outside())]),
    "If of a function": lambda: model(functions=[function(branch("If", ["then_branch"], graph((), [outside()])))]),
    "training, initialization": lambda: training(initialization=graph(initializer=[outside()])),
    "training, algorithm": lambda: training(algorithm=graph([constant(value=outside())])),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_every_hiding_place(tmp_path, place):
    path = tmp_path / "step.onnx"
    path.write_bytes(HIDDEN[place]().SerializeToString())
    assert external_locations(path) == {"secret.data"}
    check_graph_file(path, {"step.onnx", "secret.data"})
    with pytest.raises(PlanError) as caught:
        check_graph_file(path, {"step.onnx"})
    assert str(caught.value) == (
        "step.onnx: external data: got the file 'secret.data', expected one inside the plan that manifest.json lists "
        "in files; export the plan again"
    )


def test_the_table_is_that_of_onnx():
    """All fields that lead to a tensor, and to what; the package's own description is the oracle."""
    found, waiting = {}, [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.name not in found:
            found[message.name] = {f.number: f.message_type.name for f in message.fields if f.message_type}
            waiting += [f.message_type for f in message.fields if f.message_type]
    leading = {"TensorProto"}
    while more := {name for name, fields in found.items() if leading & {*fields.values()}} - leading:
        leading |= more
    expected = {
        name: {number: child for number, child in found[name].items() if child in leading}
        for name in leading - {"TensorProto"}
    }
    (external,) = (f for f in onnx.TensorProto.DESCRIPTOR.fields if f.name == "external_data")
    assert {**expected, "TensorProto": {external.number: external.message_type.name}} == FIELDS


@pytest.mark.parametrize(
    "location",
    ["../w.data", "/etc/hostname", "./w.data", "report/steps.png", "a\\w.data", "w.data\0", "", "*/_ORT_MEM_ADDR_/*"],
)
def test_locations_that_are_not_a_listed_file_beside_it(tmp_path, location):
    path = tmp_path / "step.onnx"
    path.write_bytes(model(graph(initializer=[outside(location)])).SerializeToString())
    with pytest.raises(PlanError, match=r"^step\.onnx: external data: got the file "):
        check_graph_file(path, {"step.onnx", "w.data", "report/steps.png"})


def test_control_characters_are_not_echoed(tmp_path):
    path = tmp_path / "step.onnx"
    path.write_bytes(model(graph(initializer=[outside("\x1b[2J" + 1000 * "x")])).SerializeToString())
    with pytest.raises(PlanError) as caught:
        check_graph_file(path, ())
    assert str(caught.value).isprintable() and len(str(caught.value)) < 220


def field(number, content, wire=2):
    """The bytes of a field."""
    length, rest = b"", len(content)
    while rest > 127:
        length, rest = length + bytes([rest % 128 + 128]), rest >> 7
    return bytes([number << 3 | wire]) + (length + bytes([rest]) if wire == 2 else b"") + content


def of_model(tensor):
    """A model, in bytes, with an initializer of these bytes."""
    return field(7, field(5, tensor))


LOCATION = field(13, field(1, b"location") + field(2, b"w.data"))


@pytest.mark.parametrize(
    "content",
    [
        of_model(LOCATION),  # data_location is not set
        field(7, field(2, b"g")) + of_model(LOCATION),  # protobuf merges the two graphs
        of_model(field(13, field(2, b"w.data") + field(1, b"location"))),
        of_model(field(13, field(1, b"x") + field(1, b"location") + field(2, b"w.data"))),
        of_model(field(13, field(1, b"location") + field(2, b"w.data")) + field(13, b"")),
        field(6, b"doc") + field(1, b"\x08", 0) + of_model(field(9, b"\xff" * 16) + LOCATION),
        of_model(field(2, b"\x01", 0) + field(12, b"\0" * 8, 1) + field(3, b"\0" * 4, 5) + LOCATION),
    ],
    ids=["unmarked", "merged", "value first", "two keys", "two entries", "after others", "after numbers"],
)
def test_odd_ways_to_write_it(tmp_path, content):
    path = tmp_path / "step.onnx"
    path.write_bytes(content)
    assert external_locations(path) == {"w.data"}
    assert onnx.ModelProto.FromString(content).graph.initializer[0].external_data[0].value == "w.data"


MALFORMED = {
    "empty": (b"", "cannot mmap an empty file"),
    "text": (b"not a graph", ""),
    "zeros": (bytes(100), "field number 0"),
    "no graph": (field(6, b"doc"), "no graph in it"),
    "length beyond the end": (b"\x3a\x7f", "127 bytes where 0 are left"),
    "length beyond its message": (field(7, b"\x2a\x05ab"), "5 bytes where 2 are left"),
    "length without end": (b"\x3a" + b"\xff" * 12, "a number without end"),
    "number without end": (b"\x08" + b"\xff" * 12, "a number without end"),
    "tag without end": (b"\xba" + b"\xff" * 12, "a number without end"),
    "tag that is cut off": (field(7, b"\xaa"), "cut off"),
    "tag beyond 32 bits": (b"\xba\x80\x80\x80\x10\x00", "field number"),
    "number that is cut off": (b"\x3a\x00\x09\x00", "cut off"),
    "group": (b"\x3b\x3c", "wire type 3"),
    "EPContext": (field(7, field(1, field(4, b"EPContext"))), "an EPContext node"),
    "endless location": (
        model(graph(initializer=[outside("x" * 5000)])).SerializeToString(),
        "a name of 5000 bytes",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_graph_is_one_error(tmp_path, case):
    content, why = MALFORMED[case]
    path = tmp_path / "step.onnx"
    path.write_bytes(content)
    with pytest.raises(PlanError) as caught:
        external_locations(path)
    assert str(caught.value).startswith("step.onnx: got no ONNX graph (") and why in str(caught.value)


def test_messages_within_each_other_without_end(tmp_path):
    """Not even Python's stack is used up."""
    path, content = tmp_path / "step.onnx", b""
    for _ in range(2000):
        content = field(1, field(5, field(6, content)))
    path.write_bytes(field(7, content))
    with pytest.raises(PlanError, match="more than 100 messages within each other"):
        external_locations(path)


def test_a_limit_to_what_is_walked(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_file, "_MOST_FIELDS", 50)
    path = tmp_path / "step.onnx"
    path.write_bytes(of_model(b"\x08\x01" * 60))
    with pytest.raises(PlanError, match="more than 50 fields"):
        external_locations(path)


def test_damaged_graphs_are_never_another_error(tmp_path, tiny_plan):
    rng = random.Random(0)
    whole = (tiny_plan.path / "memory.onnx").read_bytes()
    path = tmp_path / "step.onnx"
    for _ in range(300):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randrange(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            external_locations(path)
        except PlanError as error:
            assert str(error).startswith("step.onnx: got no ONNX graph (")


def test_only_onnx_files_are_graphs(tmp_path):
    """ONNX Runtime reads step.ort in a format that is not looked into here."""
    path = tmp_path / "step.ort"
    path.write_bytes(model().SerializeToString())
    with pytest.raises(PlanError, match=r"^step\.ort: got a graph of that name, expected one that ends in \.onnx"):
        check_graph_file(path, {"step.ort"})


@pytest.mark.parametrize("location", ["../secret.data", "secret.data"])
def test_a_plan_whose_graph_reads_another_file(plan_copy, location):
    """Its hashes are right: it was made so."""
    (plan_copy.parent / "secret.data").write_bytes(bytes(8))
    values = Plan.open(plan_copy).manifest.model_dump(mode="json", exclude={"files"})
    changed = onnx.load(plan_copy / "step.onnx")
    changed.graph.initializer.append(outside(location))
    onnx.save(changed, plan_copy / "step.onnx")
    write_manifest(plan_copy, values)
    with pytest.raises(PlanError, match=r"^step\.onnx: external data: got the file '(\.\./)?secret\.data'"):
        Plan.open(plan_copy)
