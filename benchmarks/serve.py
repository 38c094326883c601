"""What serving costs: first frame in a browser; real time and memory with one viewer, with eight, and with one that
stalls; the shares of four streams at once.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from videossm.runtime.plan import Plan

OPENINGS = 5
SETTLED = 0.2  # of the time, after which memory counts


@contextmanager
def server(plan: str) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "videossm.serve.cli", plan, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+/", line):
                yield found[0].rstrip("/")
                return
        raise SystemExit("serve: it did not start")
    finally:
        process.terminate()
        process.wait()


def ask(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = Request(url, content, {"content-type": "application/json"}, method=method)
    with urlopen(request) as answer:
        return json.loads(answer.read() or b"null")


def metrics(url: str) -> dict[str, float]:
    with urlopen(f"{url}/metrics") as answer:
        return {
            name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", answer.read().decode(), re.MULTILINE)
        }


def first_frame_ms(url: str) -> list[float] | str:
    """Since each page's opening, of OPENINGS; or why there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return "no Chromium"
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(OPENINGS):
            page = browser.new_page()
            page.goto(url)
            while not (marks := page.evaluate("performance.getEntriesByName('first-frame').map(m => m.startTime)")):
                page.wait_for_timeout(20)
            found.append(marks[0])
            page.close()
            for stream in ask("GET", f"{url}/api/streams")["streams"]:
                ask("DELETE", f"{url}/api/streams/{stream['id']}")
        browser.close()
    return found


def watch(url: str, path: str, counts: list[int], place: int, ended: threading.Event) -> None:
    with connect(url.replace("http", "ws") + path, compression=None) as live:
        while not ended.is_set():
            try:
                counts[place] += isinstance(live.recv(timeout=30), bytes)
            except ConnectionClosed:
                return


def stall(url: str, path: str) -> socket.socket:
    """A viewer that reads nothing, as its window is small."""
    host, port = url.removeprefix("http://").split(":")
    slow = socket.create_connection((host, int(port)))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade"]
    head += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
    slow.sendall("\r\n".join(head).encode())
    return slow


def play(url: str, plan: Plan, seconds: float, viewers: int, stalled: bool) -> dict[str, Any]:
    """One stream, watched for so long."""
    examples = plan.manifest.text.examples if plan.manifest.text else ()
    stream = ask("POST", f"{url}/api/streams", {"prompt": examples[0]} if examples else {})
    path = f"/api/streams/{stream['id']}/live?codec=h264"
    counts, ended = [0] * viewers, threading.Event()
    threads = [threading.Thread(target=watch, args=(url, path, counts, n, ended)) for n in range(viewers)]
    before, memory = metrics(url), []
    started = time.monotonic()
    with ExitStack() as stack:
        if stalled:
            stack.enter_context(stall(url, path))
        for thread in threads:
            thread.start()
        while (passed := time.monotonic() - started) < seconds:
            time.sleep(min(5.0, seconds / 20))
            if passed > SETTLED * seconds:
                memory.append(metrics(url)["process_resident_memory_bytes"])
        after = metrics(url)
        wall_s = time.monotonic() - started
        ended.set()
    for thread in threads:
        thread.join()
    ask("DELETE", f"{url}/api/streams/{stream['id']}")
    chunks = after["videossm_chunk_seconds_count"] - before["videossm_chunk_seconds_count"]
    frames = after["videossm_frames_total"] - before["videossm_frames_total"]
    return {
        "viewers": viewers,
        "stalled": stalled,
        "wall_s": wall_s,
        "video_s": frames / plan.manifest.stream.fps,
        "ms_per_chunk": 1000 * (after["videossm_chunk_seconds_sum"] - before["videossm_chunk_seconds_sum"]) / chunks,
        "late_s_per_chunk": (after["videossm_late_seconds_sum"] - before["videossm_late_seconds_sum"]) / chunks,
        "chunks_seen": counts,
        "chunks_missed": after["videossm_missed_chunks_total"] - before["videossm_missed_chunks_total"],
        "memory_mb": [round(each / 1e6, 1) for each in (memory[0], statistics.median(memory), memory[-1])],
    }


def shares(url: str, plan: Plan, seconds: float, streams: int) -> dict[str, Any]:
    """Chunks of each of several streams that are watched at once."""
    examples = plan.manifest.text.examples if plan.manifest.text else ()
    made = [ask("POST", f"{url}/api/streams", {"prompt": examples[0]} if examples else {}) for _ in range(streams)]
    counts, ended = [0] * streams, threading.Event()
    paths = [f"/api/streams/{stream['id']}/live?codec=h264" for stream in made]
    threads = [threading.Thread(target=watch, args=(url, path, counts, n, ended)) for n, path in enumerate(paths)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    ended.set()
    for thread in threads:
        thread.join()
    wall_s = time.monotonic() - started
    for stream in made:
        ask("DELETE", f"{url}/api/streams/{stream['id']}")
    chunk_s = plan.manifest.stream.later_frames / plan.manifest.stream.fps
    return {"streams": streams, "wall_s": wall_s, "chunks_seen": counts, "chunks_in_real_time": wall_s / chunk_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan")
    parser.add_argument("--seconds", type=float, default=600.0, help="of each way to watch")
    parser.add_argument("--json", type=Path, default=Path("out/serve.json"))
    given = parser.parse_args()
    plan = Plan.open(given.plan)
    with server(given.plan) as url:
        result: dict[str, Any] = {"plan": plan.name, "first_frame_ms": first_frame_ms(url)}
        ways: list[Callable[[], dict[str, Any]]] = [
            lambda: play(url, plan, given.seconds, 1, False),
            lambda: play(url, plan, given.seconds, 8, False),
            lambda: play(url, plan, given.seconds, 1, True),
        ]
        result["plays"] = [way() for way in ways]
        result["shares"] = shares(url, plan, given.seconds / 10, 4)
    given.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
