"""The API: streams are made, steered, forked, saved, resumed and watched; what is wrong is told, and limits hold."""

from __future__ import annotations

import io
import re
import time

import av
import numpy as np
import pytest

from videossm.runtime import Rollout
from videossm.runtime.state import most_state_bytes
from videossm.serve.limits import Limits

JSON = {"content-type": "application/json"}
BINARY = {"content-type": "application/octet-stream"}


def until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def watched(server, stream, frames):
    """The first `frames` of its MP4, decoded. Then nobody watches it, and its last chunk is done."""
    content = bytearray()
    with server.ask("GET", f"/api/streams/{stream['id']}/video.mp4", stream=True) as answer:
        assert answer.headers["content-type"] == "video/mp4"
        for part in answer.iter_content(None):
            content += part
            if content.count(b"moof") > frames:
                break
    until(lambda: info(server, stream)["viewers"] == 0)
    server.ask("GET", f"/api/streams/{stream['id']}/state")  # waits for the chunk in hand
    found = []
    with av.open(io.BytesIO(bytes(content[: content.rindex(b"moof") - 4]))) as file:
        for frame in file.decode(video=0):
            found.append(frame.to_ndarray(format="rgb24"))
    return np.stack(found)


def info(server, stream):
    return server.ask("GET", f"/api/streams/{stream['id']}").json()


def test_a_stream_is_described(server):
    stream = server.create("a red circle", seed=2**64 - 1)
    assert stream["prompts"] == ["a red circle"] and stream["seeds"] == [2**64 - 1]
    assert (stream["paused"], stream["ended"], stream["problem"], stream["next_chunk"]) == (False, False, None, 0)
    assert server.ask("GET", "/api/streams").json() == {"streams": [info(server, stream)]}
    plan = server.ask("GET", "/api/plan").json()
    assert (plan["name"], plan["width"], plan["fps"], plan["device"]) == ("tiny", 32, 24.0, "cpu")
    assert server.ask("GET", "/api/health").json() == {"status": "ok"}


def test_a_player_gets_the_rollouts_frames(server, tiny_plan):
    frames = watched(server, server.create("a red circle", seed=5), 6).astype(int)
    expected = np.concatenate([chunk.frames[0] for chunk in Rollout(tiny_plan, "a red circle", 5).play(6)])
    count = min(len(frames), len(expected))
    assert count > 6 and np.abs(frames[:count] - expected[:count]).mean() < 12, "but for what H.264 leaves out"
    assert np.abs(frames[3:count] - expected[: count - 3]).mean() > 12, "others are farther off"


def test_nothing_is_made_for_nobody(server):
    stream = server.create()
    time.sleep(0.3)
    assert info(server, stream)["next_chunk"] == 0


def test_prompts_are_on_the_time_line(server):
    stream = server.create("a red circle")
    watched(server, stream, 9)
    for prompt in ("blue", "green", "green"):
        answer = server.ask("PUT", f"/api/streams/{stream['id']}/prompt", json={"prompt": prompt})
        assert answer.status_code == 200
    history = answer.json()["history"]
    assert [entry["prompts"] for entry in history] == [["a red circle"], ["green"]], "none has followed blue"
    assert history[1]["start_s"] == answer.json()["next_start_s"] > 0


def test_a_fork_goes_on_from_there(server):
    stream = server.create("a red circle", seed=3)
    watched(server, stream, 9)
    path = f"/api/streams/{stream['id']}"
    before = info(server, stream)
    same = server.ask("POST", f"{path}/fork", json={}).json()
    other = server.ask("POST", f"{path}/fork", json={"prompt": "blue", "seed": 9}).json()
    assert same["next_chunk"] == other["next_chunk"] == before["next_chunk"]
    assert same["history"] == before["history"] and other["seeds"] == [9]
    assert [entry["prompts"] for entry in other["history"]] == [["a red circle"], ["blue"]]
    states = [server.ask("GET", f"/api/streams/{each['id']}/state").content for each in (stream, same, other)]
    assert states[0] == states[1] != states[2]


def test_a_saved_state_goes_on_here_and_in_the_runtime(server, tiny_plan, tmp_path):
    stream = server.create("a red circle", seed=3)
    watched(server, stream, 9)
    answer = server.ask("GET", f"/api/streams/{stream['id']}/state")
    assert re.search(r'filename="tiny-\w+\.safetensors"', answer.headers["content-disposition"])
    (tmp_path / "s").write_bytes(answer.content)
    resumed = Rollout.resume(tiny_plan, tmp_path / "s")
    loaded = server.ask("POST", "/api/states", data=answer.content, headers=BINARY).json()
    assert loaded["next_chunk"] == resumed.next_index and loaded["seeds"] == [3]
    assert server.ask("GET", f"/api/streams/{loaded['id']}/state").content == answer.content
    expected = Rollout(tiny_plan, "a red circle", 3)
    for _ in range(resumed.next_index):
        next(expected)
    assert np.array_equal(next(resumed).frames, next(expected).frames)


def test_a_strangers_state_is_read_as_strictly_as_from_disk(server, tiny_plan):
    stream = server.create()
    whole = server.ask("GET", f"/api/streams/{stream['id']}/state").content
    damaged = {
        "empty": b"",
        "text": b"not a state",
        "cut": whole[:-5],
        "longer": whole + b"\0",
        "foreign": whole.replace(tiny_plan.manifest.stream_identity.encode(), b"0" * 64),
        "no-number": whole.replace(b'"chunk\\":\\"0', b'"chunk\\":\\"x'),
    }
    for name, content in damaged.items():
        answer = server.ask("POST", "/api/states", data=content, headers=BINARY)
        assert answer.status_code == 422 and "the upload" in answer.json()["error"], name
        assert "/tmp" not in answer.text, "no path of the server"
    too_long = b"\0" * (most_state_bytes(tiny_plan.manifest) + 1)
    assert server.ask("POST", "/api/states", data=too_long, headers=BINARY).status_code == 413
    assert len(server.host.streams) == 1


BAD = {
    "no-json": ("{", JSON, 422, "body: got"),
    "no-object": ("[]", JSON, 422, "body: got []"),
    "unknown-field": ('{"prompt":"red","fps":1}', JSON, 422, "fps: got 1"),
    "number": ('{"prompt":7}', JSON, 422, "prompt"),
    "seed": ('{"prompt":"red","seed":-1}', JSON, 422, "seed: got -1"),
    "fraction": ('{"prompt":"red","seed":0.5}', JSON, 422, "seed: got 0.5"),
    "unknown-word": ('{"prompt":"pink"}', JSON, 422, "prompt: got the unknown word 'pink'"),
    "empty": ('{"prompt":" "}', JSON, 422, "prompt: got an empty text"),
    "none": ("{}", JSON, 422, "prompt: got 0, expected 1"),
    "two": ('{"prompt":["red","blue"]}', JSON, 422, "prompt: got 2, expected 1"),
    "long": (f'{{"prompt":"{"red " * 300}"}}', JSON, 422, "prompt: got 1200 characters, expected at most 1000"),
    "huge": (" " * 70_000, JSON, 413, "body: got more than 65536 bytes"),
    "deep": ("[" * 60_000, JSON, 422, "body: got"),
    "form": ("prompt=red", {"content-type": "text/plain"}, 415, "content-type: got 'text/plain'"),
}


@pytest.mark.parametrize(("body", "headers", "status", "start"), BAD.values(), ids=BAD.keys())
def test_a_wrong_body_is_told(server, body, headers, status, start):
    answer = server.ask("POST", "/api/streams", data=body, headers=headers)
    assert answer.status_code == status and answer.json()["error"].startswith(start), answer.text
    assert server.host.streams == {}


def test_what_is_not_there(server):
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/state"), ("GET", "/video.mp4"), ("POST", "/fork")]:
        answer = server.ask(method, f"/api/streams/none{path}", json={} if method == "POST" else None)
        assert answer.status_code == 404 and "stream: got 'none'" in answer.json()["error"]
    assert server.ask("GET", "/api/nothing").json()["error"].startswith("GET '/api/nothing': Not Found")
    assert set(server.ask("PATCH", "/api/streams").headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert server.ask("GET", "/page/../app.py").status_code == 404
    assert server.ask("GET", "/page/%2e%2e/app.py").status_code == 404


def test_there_are_no_more_streams_than_allowed(server):
    for _ in range(6):
        server.create()
    answer = server.ask("POST", "/api/streams", json={"prompt": "red"})
    assert answer.status_code == 429 and answer.json()["error"].startswith("streams: got 6 already")
    stream = server.ask("GET", "/api/streams").json()["streams"][0]
    assert server.ask("POST", f"/api/streams/{stream['id']}/fork", json={}).status_code == 429
    server.ask("DELETE", f"/api/streams/{stream['id']}")
    server.create()


def test_a_stream_that_nobody_watches_goes(serving, tiny_plan):
    server = serving(tiny_plan)
    watched(server, server.create(), 3)
    server.host.limits = Limits(idle_s=0.1)
    until(lambda: not server.host.streams)


def test_a_paused_stream_stands_still(server):
    stream = server.create()
    path = f"/api/streams/{stream['id']}"
    assert server.ask("PUT", f"{path}/paused", json={"paused": True}).json()["paused"] is True
    with server.ask("GET", f"{path}/video.mp4", stream=True) as answer:
        time.sleep(0.3)
        assert info(server, stream)["next_chunk"] == 0 and info(server, stream)["viewers"] == 1
        server.ask("PUT", f"{path}/paused", json={"paused": False})
        until(lambda: info(server, stream)["next_chunk"] > 1)
        del answer
    until(lambda: info(server, stream)["viewers"] == 0)


def test_a_player_of_a_deleted_stream_is_sent_home(server):
    stream = server.create()
    with server.ask("GET", f"/api/streams/{stream['id']}/video.mp4", stream=True) as answer:
        next(answer.iter_content(None))
        server.ask("DELETE", f"/api/streams/{stream['id']}")
        for _ in answer.iter_content(None):
            pass


def test_metrics(server):
    watched(server, server.create(), 6)
    text = server.ask("GET", "/metrics").text
    numbers = dict(re.findall(r"^(videossm_\w+) ([0-9.e+-]+)$", text, re.MULTILINE))
    assert float(numbers["videossm_streams"]) == 1
    assert float(numbers["videossm_chunk_seconds_count"]) > 1 and float(numbers["videossm_sent_bytes_total"]) > 1000
    assert 'videossm_engine_seconds_total{engine="step"}' in text and "process_resident_memory_bytes" in text


def test_a_failing_engine_ends_its_stream_and_no_other(server, monkeypatch):
    from videossm.runtime.errors import BackendError

    broken, well = server.create(), server.create()

    def fail(*_):
        raise BackendError("step: cannot run; free memory")

    monkeypatch.setattr(server.host.streams[broken["id"]].rollout._program, "run_pass", fail)
    with server.ask("GET", f"/api/streams/{broken['id']}/video.mp4", stream=True) as answer:
        assert b"".join(answer.iter_content(None)) == b""
    assert info(server, broken)["problem"] == "step: cannot run; free memory"
    for method, path in (("GET", "state"), ("POST", "fork"), ("GET", "video.mp4")):
        answer = server.ask(method, f"/api/streams/{broken['id']}/{path}", json={} if method == "POST" else None)
        assert answer.status_code == 409
    assert len(watched(server, well, 3))


@pytest.fixture(scope="module")
def guarded(serving, tiny_plan):
    return serving(tiny_plan, token="a-token-of-some-length")


def test_a_token_opens(guarded):
    for right in (
        {"headers": {"authorization": "Bearer a-token-of-some-length"}},
        {"params": {"token": "a-token-of-some-length"}},
    ):
        assert guarded.ask("GET", "/api/streams", **right).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer x"}, {"authorization": "Basic a-token-of-some-length"}]
)
def test_nothing_else_does(guarded, headers):
    for path in ("/api/streams", "/api/plan", "/metrics", "/api/streams/x/video.mp4"):
        answer = guarded.ask("GET", path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert guarded.ask("GET", "/").status_code == guarded.ask("GET", "/api/health").status_code == 200


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"}, {"host": ""}]
)
def test_without_a_token_other_sites_are_refused(server, headers):
    assert server.ask("GET", "/api/streams", headers=headers).status_code in (400, 403)


def test_the_page_may_hold_nothing_of_others(server):
    headers = server.ask("GET", "/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
