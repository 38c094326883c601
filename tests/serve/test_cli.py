"""videossm-serve: it says the preflight's answer and where it is, ends on a signal, and asks for a token elsewhere."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import requests

from videossm.serve.cli import serve


def start(plan, *options, **environment):
    command = [sys.executable, "-m", "videossm.serve.cli", str(plan.path), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stderr is not None
    return process, [process.stderr.readline(), process.stderr.readline()]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_it_says_where_it_is_and_ends(tiny_plan, number, code, word):
    process, lines = start(tiny_plan)
    assert lines[0] == "preflight: tiny runs here, on cpu\n"
    url = re.fullmatch(r"videossm-serve: (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", lines[1])[1]
    stream = requests.post(f"{url}api/streams", json={"prompt": "red"}, timeout=30).json()
    with requests.get(f"{url}api/streams/{stream['id']}/video.mp4", stream=True, timeout=30) as playing:
        next(playing.iter_content(1))
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code and err.strip() == word


def test_requests_that_never_end_are_cut_off_in_silence(tiny_plan):
    process, lines = start(tiny_plan)
    port = int(re.search(r":(\d+)/", lines[1])[1])
    request = (
        b"POST /api/streams HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as waiting:
        waiting.sendall(request)
        requests.get(f"http://127.0.0.1:{port}/api/health", timeout=30)  # after it the first one is in hand
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert err.strip() == "terminated"


def test_elsewhere_it_needs_a_token(tiny_plan):
    process, lines = start(tiny_plan, "--host", "0.0.0.0")
    port, token = re.search(r":(\d+)/#token=(\S{16,}) ", lines[1]).groups()
    url = f"http://127.0.0.1:{port}/api/plan"
    assert requests.get(url, timeout=30).status_code == 401
    assert requests.get(url, params={"token": token}, timeout=30).status_code == 200
    process.terminate()
    process.communicate(timeout=30)


def test_what_is_wrong_is_one_line(tiny_plan, capfd, monkeypatch):
    def failed(*arguments):
        with pytest.raises(SystemExit) as ended:
            serve.main([*arguments])
        err = capfd.readouterr().err
        assert ended.value.code == 2 and err.count("\n") == 1, err
        return err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert failed(str(tiny_plan.path), "--port", port).startswith("--host, --port: cannot listen on")
    assert failed("none.plan").startswith("plan: got none.plan")
    assert failed(str(tiny_plan.path), "--port", "0", "--device", "cuda:0").startswith("device: got cuda:0")
    monkeypatch.setenv("VIDEOSSM_TOKEN", "short")
    assert failed(str(tiny_plan.path)).startswith("VIDEOSSM_TOKEN: got 5 characters")
