"""Which files an ONNX graph reads besides itself, found without the package `onnx`.

An ONNX file is a protobuf message. Here its fields are walked over a memory map: the lengths lead from one field to
the next, so the data of tensors is never read. Only those messages are entered that can lead to a tensor. Whatever
protobuf would read leniently (groups, overlong numbers) is refused: no exporter writes it, and two readers might not
agree on it.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path

from videossm.runtime.errors import PlanError, shown
from videossm.runtime.manifest import Manifest

# By message, the fields that lead to tensors: field number -> message. From onnx.proto; a test compares it with that.
FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
_ENTRY = "StringStringEntryProto"  # of a tensor's external_data: 1 is the key, 2 the value
_OPERATOR = 4  # NodeProto.op_type
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_DEEPEST = 100  # messages within each other; protobuf has the same limit
_LONGEST_TEXT = 4096  # of an operator and of a path, in bytes
_MOST_FIELDS = 5_000_000  # of one file, some seconds; the largest graphs of this repository have a tenth of a million
_MEND = "export the plan again"


def check_graphs(folder: Path, manifest: Manifest) -> None:
    """`check_graph_file` for every ONNX file that an engine of the plan in `folder` is loaded from."""
    for _, engine in manifest.engines.items():
        graphs = [engine.file] if manifest.backend == "onnxruntime" else []
        for name in filter(None, [*graphs, engine.weights]):
            check_graph_file(folder / name, manifest.files.keys())


def check_graph_file(path: Path, listed: Collection[str]) -> None:
    """Raises PlanError unless `path` is an ONNX graph that reads no file but those beside it that are in `listed`.

    `listed`: names of the files in manifest.json, each of which lies in the folder of `path` and has been verified.
    """
    if path.suffix != ".onnx":  # ONNX Runtime takes .ort for a format of its own, which is not read here
        raise PlanError(f"{path.name}: got a graph of that name, expected one that ends in .onnx; {_MEND}")
    for location in sorted(external_locations(path)):
        if "/" in location or "\\" in location or location not in listed:
            raise PlanError(
                f"{path.name}: external data: got the file {shown(location)}, expected one inside the plan that "
                f"manifest.json lists in files; {_MEND}"
            )


def external_locations(path: Path) -> set[str]:
    """The `location` of the external data of every tensor in the ONNX file `path`, wherever in it.

    Bytes that are no UTF-8 are written as \\xNN. Raises PlanError: no ONNX graph, or a node whose engine is a file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _locations(content)
    except OSError as error:
        raise PlanError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:  # _locations says why; mmap refuses an empty file
        raise PlanError(f"{path.name}: got no ONNX graph ({error}), expected one; {_MEND}") from error


def _locations(content: mmap.mmap) -> set[str]:
    """Raises ValueError."""
    found: set[str] = set()
    has_graph = False
    budget = _MOST_FIELDS
    waiting = [("ModelProto", 0, len(content), 0)]  # message, start, stop, depth
    while waiting:
        message, start, stop, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} messages within each other")
        if message == _ENTRY:
            found |= _location(content, start, stop)
            continue
        children = FIELDS[message]
        for number, begin, end in _fields(content, start, stop):
            budget -= 1
            if budget < 0:
                raise ValueError(f"more than {_MOST_FIELDS} fields")
            if number in children:
                has_graph |= message == "ModelProto" and children[number] == "GraphProto"
                waiting.append((children[number], begin, end, depth + 1))
            elif message == "NodeProto" and number == _OPERATOR and _text(content, begin, end) == b"EPContext":
                raise ValueError("an EPContext node, which reads a file of its own")
    if not has_graph:
        raise ValueError("no graph in it")
    return found


def _location(content: mmap.mmap, start: int, stop: int) -> set[str]:
    """What an entry of external_data says for `location`: all of it, though for protobuf the last one counts."""
    texts: dict[int, list[bytes]] = {1: [], 2: []}
    for number, begin, end in _fields(content, start, stop):
        if number in texts:
            texts[number].append(_text(content, begin, end))
    return {text.decode("utf-8", "backslashreplace") for text in texts[2]} if b"location" in texts[1] else set()


def _text(content: mmap.mmap, start: int, stop: int) -> bytes:
    if stop - start > _LONGEST_TEXT:
        raise ValueError(f"a name of {stop - start} bytes at byte {start}")
    return content[start:stop]


def _fields(content: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message: number, and where the content starts and stops. A field of no bytes has the number 0.

    Raises ValueError for what is no message.
    """
    place = start
    while place < stop:
        tag, place = _varint(content, place, stop, 5)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ValueError(f"field number {number} at byte {place}")
        if wire == _BYTES:
            length, place = _varint(content, place, stop, 5)
            if length > stop - place:
                raise ValueError(f"{length} bytes where {stop - place} are left, at byte {place}")
            yield number, place, place + length
            place += length
            continue
        if wire == _VARINT:
            _, place = _varint(content, place, stop, 10)
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if place > stop:
            raise ValueError(f"cut off at byte {stop}")
        yield 0, place, place


def _varint(content: mmap.mmap, place: int, stop: int, most_bytes: int) -> tuple[int, int]:
    """A number in 7 bits a byte, lowest first, and where the next field begins."""
    value = 0
    for index in range(most_bytes):
        if place + index >= stop:
            raise ValueError(f"cut off at byte {stop}")
        byte = content[place + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError(f"a number without end at byte {place}")
