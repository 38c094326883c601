"""A small plan with anything wrong in it is refused in one line, in time and memory; or it is another plan, and runs.

Exactly: a mutation that leaves the hashes as they were is refused, if it changes a byte of a file that the plan lists.
One whose hashes were put right may be accepted: it is then a plan, or a state of that plan, that says something else
(another fps, another weight, another number in a state), which must make a chunk or be refused on the way there.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
import resource
import time
from collections import Counter
from pathlib import Path

import mixed
import numpy as np
import pytest
from small_plan import sealed

from videossm.runtime import BackendError, Plan, PlanError, PromptError, Rollout, StateError
from videossm.runtime.errors import PreflightError

REFUSALS = (PlanError, StateError, BackendError, PromptError, PreflightError)
MUTATIONS, FAST = 10_000, 20  # of which every 20th in make test
LONGEST_S = 3.0  # of the processor
MOST_BYTES = 1 << 30  # that one may take beyond what the process has
PROMPTS, SEEDS = ["a red circle", "blue"], [1, 2]
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.0, 1e30, 2**31, 2**40, 2**63, 10**30, "", "a", "float32", "int64",
    "float16", "bfloat16", "uint8", "carry", "ring", "prompt", "chunk", "sample", "clean", "noise", "state.old", "..",
    "evicted.key", "state.key", "window.rho", "text.ids", "net", "light", "net.onnx", "before", "evict", "after",
    "x" * 300, [], {}, [1], [2, 2], [2, 3], {"a": 1}, "\n", "\x00", "\u2028", "0" * 64,
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, contents by file): a plan, with a state of it in the file `state`."""
    folder = tmp_path_factory.mktemp("mutated")
    plan = mixed.several(folder)
    with Rollout(plan, PROMPTS, SEEDS, threads=1) as rollout:
        for _ in range(5):
            next(rollout)
        rollout.save(folder.with_suffix(".state"))  # not into the plan
    folder.with_suffix(".state").rename(folder / "state")
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def mutated_bytes(draw, content):
    """Bits, cuts, bytes that are more, doubled or exchanged."""
    at, kind = draw.randrange(len(content)), draw.randrange(6)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + draw.randbytes(draw.randrange(1, 20)) + content[at:]
    if kind == 3:
        return content[:at] + content[at + draw.randrange(1, 50) :]
    if kind == 4:
        return content[:at] + draw.randbytes(4) + content[at + 4 :]
    return content[:at] + content[draw.randrange(len(content)) :]


def places(values, above=()):
    """Paths to all values."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield (*above, key)
            yield from places(value, (*above, key))


def mutated_values(draw, values):
    """One or two places of JSON that are gone, doubled, of another name, of a value out of VALUES or from elsewhere."""
    values = copy.deepcopy(values)
    for _ in range(draw.choice([1, 1, 2])):
        paths = list(places(values))
        *above, last = draw.choice(paths)
        place = values
        for key in above:
            place = place[key]
        other = values
        for key in draw.choice(paths):
            other = other[key]
        kind = draw.randrange(5)
        if kind == 0:
            del place[last]
        elif kind == 1 and isinstance(place, list):
            place.insert(last, copy.deepcopy(place[last]))
        elif kind == 2 and isinstance(place, dict):
            place[draw.choice(["extra", "a b", "..", "Name", f"{last}s"])] = place.pop(last)
        elif kind == 3:
            place[last] = copy.deepcopy(other)
        else:
            place[last] = copy.deepcopy(draw.choice(VALUES))
    return values


def mutate(number, contents):
    """(contents of the changed files, whether they must be refused)"""
    draw = random.Random(number)
    target = draw.choice(["manifest", "manifest", "manifest", "values", "tokenizer", "graph", "state", "state"])
    manifest = json.loads(contents["manifest.json"])
    if target == "values":  # bytes of the manifest, and hashes as they were
        changed = mutated_bytes(draw, contents["manifest.json"])
        return {"manifest.json": changed}, changed != contents["manifest.json"]
    if target == "manifest":
        values = mutated_values(draw, manifest)
        return {"manifest.json": sealed(values)}, not isinstance(values, dict)
    name = {"tokenizer": "tokenizer.json", "state": "state"}.get(
        target
    ) or f"{draw.choice(list(manifest['engines']))}.onnx"
    if name.endswith(".json") and draw.random() < 0.7:
        changed = json.dumps(mutated_values(draw, json.loads(contents[name]))).encode()
    else:
        changed = mutated_bytes(draw, contents[name])
    if target == "state":
        return {name: changed}, False
    if draw.random() < 0.3:
        return {name: changed}, changed != contents[name]
    manifest["files"][name] = {"sha256": hashlib.sha256(changed).hexdigest(), "size_bytes": len(changed)}
    return {name: changed, "manifest.json": sealed(manifest)}, False


def use(folder):
    """Opens, loads, resumes and makes a chunk."""
    plan = Plan.open(folder)
    prompts = PROMPTS[: plan.manifest.stream.batch] if plan.manifest.text else None
    with Rollout(plan, prompts, SEEDS[: plan.manifest.stream.batch], threads=1) as rollout:
        stream = plan.manifest.stream
        assert next(rollout).frames.shape[1:] == (stream.first_frames, stream.height, stream.width, 3)
    with Rollout.resume(plan, folder / "state", threads=1) as resumed, np.errstate(all="ignore"):
        for chunk in resumed.play(1):
            assert chunk.frames.dtype == np.uint8


@contextlib.contextmanager
def memory_bounded():
    """Whoever wants more gets a MemoryError."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(number, folder, contents):
    """`accepted`, or the class of the refusal."""
    changed, must_refuse = mutate(number, contents)
    started = time.process_time()
    try:
        for name, content in changed.items():
            (folder / name).write_bytes(content)
        use(folder)
        result = "accepted"
    except REFUSALS as error:
        result, message = type(error).__name__, str(error)
        lines = message.split("\n")
        assert len(lines) == 1 or isinstance(error, PreflightError), f"mutation {number}: {message!r}"
        assert len(message) < 2000 and ": " in message, f"mutation {number}: {message!r}"
        named = [
            *changed,
            "manifest.json",
            "state",
            "prompt",
            "memory",
            "cannot",
            *json.loads(contents["manifest.json"])["engines"],
        ]
        assert any(name in message for name in named), f"mutation {number}: {message!r} names nothing"
    except Exception as error:
        raise AssertionError(f"mutation {number} of {list(changed)}: {type(error).__name__}: {error}") from error
    finally:
        for name in changed:
            (folder / name).write_bytes(contents[name])
    took = time.process_time() - started
    assert took < LONGEST_S, f"mutation {number} took {took:.1f} s"
    assert result != "accepted" or not must_refuse, f"mutation {number} of {list(changed)} was accepted"
    return result


def outcomes(numbers, whole):
    folder, contents = whole
    use(folder)  # what is loaded once does not count
    with memory_bounded():
        found = Counter(outcome(number, folder, contents) for number in numbers)
    use(folder)  # nothing is left of them
    return found


def test_a_part_of_the_mutations(whole):
    found = outcomes(range(0, MUTATIONS, FAST), whole)
    assert {"PlanError", "StateError", "BackendError", "accepted"} <= found.keys(), found


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_all_mutations(whole, block):
    size = MUTATIONS // 10
    assert sum(outcomes(range(block * size, (block + 1) * size), whole).values()) == size
