"""The WebSocket: chunks, prompts, wrong messages, viewers that come, go, and stop reading; and many streams at once."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from videossm.runtime.cli.measure import resident_bytes
from videossm.serve.host import Host
from videossm.serve.limits import Limits
from videossm.serve.metrics import Metrics


def open_socket(server, stream, codec="jpeg", **options):
    url = f"ws://127.0.0.1:{server.port}/api/streams/{stream['id']}/live?codec={codec}"
    return connect(url, compression=None, open_timeout=60, ping_interval=None, **options)


def received(live, kind):
    """The next message of `kind`, parsed."""
    while True:
        message = live.recv(timeout=30)
        if isinstance(message, bytes):
            if kind == "chunk":
                (length,) = struct.unpack_from("<I", message)
                head = json.loads(message[4 : 4 + length])
                assert len(message) == 4 + length + sum(head["sizes"])
                return head
        elif json.loads(message)["type"] == kind:
            return json.loads(message)


def until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("codec", "name"), [("h264", "avc1.42c00"), ("jpeg", "jpeg")])
def test_chunks_come_in_order(server, codec, name):
    with open_socket(server, server.create("red"), codec) as live:
        assert received(live, "stream")["prompts"] == ["red"]
        heads = [received(live, "chunk") for _ in range(4)]
    assert [head["chunk"] for head in heads] == [0, 1, 2, 3]
    assert all(head["codec"].startswith(name) and len(head["sizes"]) == 3 for head in heads)
    assert heads[1]["start_s"] == 0.125 and heads[0]["chunk_ms"] > 0
    assert heads[0]["engines_ms"].keys() == {"text_encoder", "step", "memory", "decoder"}


def test_prompts_and_pauses_are_told_to_every_viewer(server):
    stream = server.create("red")
    with open_socket(server, stream) as live, open_socket(server, stream) as other:
        received(other, "stream")
        live.send(json.dumps({"type": "prompt", "prompt": "blue"}))
        assert received(other, "stream")["prompts"] == ["blue"]
        for _ in range(3):
            head = received(live, "chunk")
        while head["prompts"] != ["blue"]:
            head = received(live, "chunk")
        live.send(json.dumps({"type": "pause", "paused": True}))
        assert received(other, "stream")["paused"] is True


def test_the_end_is_told(server):
    stream = server.create("red")
    with open_socket(server, stream) as live:
        received(live, "chunk")
        server.ask("DELETE", f"/api/streams/{stream['id']}")
        while not received(live, "stream")["ended"]:
            pass
    with pytest.raises(InvalidStatus, match="404"), open_socket(server, stream):
        pass


def test_who_comes_after_the_end_is_told_too(server):
    stream = server.create("red")
    served = server.host.streams[stream["id"]]
    server.ask("DELETE", f"/api/streams/{stream['id']}")

    async def watch():
        viewer = served.watch("rgb")
        try:
            return await asyncio.wait_for(viewer.next(), 30)
        finally:
            served.leave(viewer)

    assert asyncio.run(watch()) is None


def test_a_codec_or_viewer_too_much(server):
    stream = server.create("red")
    with pytest.raises(InvalidStatus, match="422"), open_socket(server, stream, "vp9"):
        pass
    with ExitStack() as lives:
        for _ in range(12):
            lives.enter_context(open_socket(server, stream))
        with pytest.raises(InvalidStatus, match="429"):
            lives.enter_context(open_socket(server, stream))


def test_another_sites_page_gets_no_socket(server):
    elsewhere = {"origin": "http://evil.example"}
    with pytest.raises(InvalidStatus, match="403"), open_socket(server, server.create("red"), **elsewhere):
        pass


def malformed(count):
    """Texts and bytes that are no message."""
    chance = random.Random(0)
    whole = [{"type": "prompt", "prompt": "red"}, {"type": "pause", "paused": True}]
    odd = [None, 7, -1.5, "", "pink", [], {}, ["red", "red"], "red" * 500, True, "\0", 1e308]
    for number in range(count):
        message = dict(chance.choice(whole))
        kind = number % 5
        if kind == 0:
            yield json.dumps(message)[: chance.randrange(1, 20)]
        elif kind == 1:
            yield json.dumps({**message, chance.choice(["x", "seed", "type"]): chance.choice(odd)})
        elif kind == 2:
            yield chance.randbytes(chance.randrange(0, 200))
        elif kind == 3:
            yield json.dumps(chance.choice(odd))
        else:
            field = chance.choice(["prompt", "type"])
            yield json.dumps({**whole[0], field: chance.choice([each for each in odd if each != "red"])})


def test_1000_malformed_messages_are_each_refused(server):
    stream = server.create("red")
    server.ask("PUT", f"/api/streams/{stream['id']}/paused", json={"paused": True})
    with open_socket(server, stream) as live:
        for message in malformed(1000):
            live.send(message)
            error = received(live, "error")["error"]
            assert error and "\n" not in error and len(error) < 700
        live.send(" " * 100_000)
        assert "100000 characters, expected at most" in received(live, "error")["error"]
        live.send(json.dumps({"type": "pause", "paused": False}))
        assert received(live, "chunk")["prompts"] == ["red"], "it goes on"


def test_a_message_beyond_all_bounds_ends_the_connection_only(server):
    stream = server.create("red")
    with open_socket(server, stream) as live, pytest.raises(Exception, match="1009"):
        live.send("x" * (2 << 20))
        while True:
            live.recv(timeout=30)
    with open_socket(server, stream) as live:
        received(live, "chunk")


def test_a_viewer_that_stops_reading_misses_chunks_and_holds_nobody_up(serving, tiny_plan):
    """What its connection buffers is the machine's affair; after that, and after what is held for it, it misses."""
    server = serving(tiny_plan)
    stream = server.create("red")
    slow = socket.create_connection(("127.0.0.1", server.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    path = f"/api/streams/{stream['id']}/live?codec=jpeg"
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    headers = f"Host: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
    slow.sendall(f"GET {path} HTTP/1.1\r\n{headers}\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    served = server.host.streams[stream["id"]]
    until(lambda: served.describe()["viewers"] == 1)
    (viewer,) = served._viewers
    served._chunk_s = 0.002
    with open_socket(server, stream) as live:
        while viewer.missed <= 50:
            assert received(live, "chunk")["chunk"] < 20_000, "the stream waits for nobody"
            assert len(viewer._chunks) <= server.host.limits.ahead_chunks
    slow.close()
    until(lambda: served.describe()["viewers"] == 0)


def test_no_chunk_is_due_once_its_viewers_have_left(tiny_plan):
    """They may leave while the thread of the engines waits."""
    host = Host(tiny_plan, Limits(), Metrics())
    watched = iter([True, False, True, True])
    stream = type("Watched", (), {"due_s": 0.0, "wanted": property(lambda self: next(watched))})()
    host.streams["watched"] = stream
    assert host._next() == ([], None)
    assert host._next() == ([], stream)


def test_the_newest_chunk_wins():
    from videossm.serve.viewer import CHANGED, Viewer

    async def watch():
        viewer = Viewer("rgb", 2)
        assert [viewer.offer(number) for number in range(5)] == [True, True, False, False, False]
        viewer.tell()
        viewer.end()
        return [await viewer.next() for _ in range(4)], viewer.missed

    assert asyncio.run(watch()) == ([CHANGED, 3, 4, None], 3)


def test_each_of_4_streams_gets_its_share(serving, tiny_plan):
    """More than this machine can make: the frames a second are raised until it cannot."""
    server = serving(tiny_plan)
    streams = [server.create("red", seed=seed) for seed in range(4)]
    turns = []

    def noting(stream):
        advance = stream.advance
        return lambda: (turns.append(stream.id), advance())

    for stream in server.host.streams.values():
        stream._chunk_s, stream.advance = 0.0005, noting(stream)
    with ExitStack() as stack:
        # Closing waits for what a full queue holds; nobody is interested in it.
        for stream in streams:
            stack.enter_context(open_socket(server, stream, close_timeout=0.1))
        until(lambda: len(set(turns)) == 4)
        begun = len(turns)  # the first one had the machine to itself
        until(lambda: len(turns) > begun + 400)
        shares = Counter(turns[begun : begun + 400])
    assert sorted(shares.values())[0] >= 90, shares


def test_100_visits_leave_nothing(serving, tiny_plan):
    server = serving(tiny_plan, idle_s=3600.0)

    def visit(number):
        stream = server.create("red", seed=number)
        with open_socket(server, stream, "h264" if number % 2 else "jpeg") as live:
            received(live, "chunk")
        server.ask("DELETE", f"/api/streams/{stream['id']}")

    for number in range(10):  # what is taken once
        visit(number)
    gc.collect()
    threads, memory = threading.active_count(), resident_bytes()
    for number in range(100):
        visit(number)
    gc.collect()
    until(lambda: threading.active_count() <= threads)
    assert server.host.streams == {}
    text = server.ask("GET", "/metrics").text
    assert "videossm_streams 0.0" in text and "videossm_viewers 0.0" in text
    assert resident_bytes() - memory < 8e6, "memory of 100 visits"


def test_the_frames_are_the_rollouts(server, tiny_plan):
    import av

    from videossm.runtime import Rollout

    expected = next(Rollout(tiny_plan, "red", 4)).frames[0]
    with open_socket(server, server.create("red", seed=4)) as live:
        while isinstance(message := live.recv(timeout=30), str):
            pass
    (length,) = struct.unpack_from("<I", message)
    sizes = json.loads(message[4 : 4 + length])["sizes"]
    decoder = av.CodecContext.create("mjpeg", "r")
    picture = decoder.decode(av.Packet(message[4 + length : 4 + length + sizes[0]]))[0].to_ndarray(format="rgb24")
    assert np.abs(picture.astype(int) - expected[0]).mean() < 8
