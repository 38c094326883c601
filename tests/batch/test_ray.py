"""Whole jobs on Ray: 60 rows on two workers, killed on the way in every manner. Without `ray` they are skipped."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from videossm.batch.video import WORK
from videossm.runtime.cli.run import run

pytest.importorskip("ray", reason="no ray: make test installs it")
ROWS, BAD = 55, 5
COLOURS = ("red", "green", "blue")


def rows():
    """ROWS good ones, every eighth with a second prompt, and BAD bad ones among them."""
    found = []
    for number in range(ROWS):
        prompt = f"a {COLOURS[number % 3]} circle"
        timed = [{"start_s": 0, "prompt": prompt}, {"start_s": 3, "prompt": "a blue square"}]
        row = {"id": f"v{number}", "prompt": timed if number % 8 == 0 else prompt, "seed": number, "seconds": 6}
        found.append(json.dumps(row))
    bad = ["nonsense", '{"id": "b1", "prompt": "pink"}', '{"id": "v0", "prompt": "red"}', '{"prompt": "red"}', "[]"]
    for number, row in enumerate(bad):
        found.insert(10 * number + 5, row)
    return found


def start(plan, folder):
    command = [sys.executable, "-m", "videossm.batch.cli", str(folder / "prompts.jsonl"), "-o", str(folder / "out")]
    log = (folder / "log").open("ab")
    options = ["--plan", str(plan.path), "--workers", "2", "--json"]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, start_new_session=True)


def workers(job):
    """Its processes that hold a plan."""
    found = []
    for process in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("MapWorker" in part for part in process.cmdline()):
                found.append(process)
    return found


def wait_for(condition, job, folder, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)


def kill_all(job):
    """The whole job at once, Ray's own processes included, as when the power goes."""
    tree = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    for process in tree:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(tree, 30)
    job.wait()


@pytest.mark.slow
def test_a_job_that_is_killed_in_every_manner(tiny_plan, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows()) + "\n")
    out = tmp_path / "out"

    def done():
        return {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}

    job = start(tiny_plan, tmp_path)

    def stopped(videos):
        """The workers that there are, when so many are done and each of them is in the middle of another."""
        while True:
            wait_for(lambda: len(done()) >= videos and len(list((out / WORK).glob("*/*.rgb"))) > 3, job, tmp_path)
            found = workers(job)
            for worker in found:
                worker.suspend()
            kept = {state.parent.name for state in (out / WORK).glob("*/*.safetensors")}
            if 0 < len(found) == len(kept):
                return found
            for worker in found:
                worker.resume()

    first, *others = stopped(8)
    first.kill()
    for worker in others:
        worker.resume()
    wait_for(lambda: len(done()) >= 20, job, tmp_path)
    kill_all(job)
    before = done()
    results = {path.name for path in out.glob("*.json")}

    job = start(tiny_plan, tmp_path)
    printed, _ = job.communicate(timeout=600)
    assert job.returncode == 2, (tmp_path / "log").read_text()
    summary = json.loads(printed)
    assert (summary["videos"], summary["errors"], summary["made_before"]) == (ROWS, BAD, len(results))
    assert len((out / "results.jsonl").read_text().splitlines()) == ROWS + BAD
    after = done()
    assert len(after) == ROWS and not list((out / WORK).glob("*"))
    twice = [name for name in before if after[name] != before[name] and name.replace("mp4", "json") in results]
    assert twice == [], "none is made twice"
    attempts = [row["attempts"] for row in summary["rows"] if "error" not in row]
    assert 1 <= sum(len(each) - 1 for each in attempts) <= 4, "as many as were in hand at the kills"
    assert sum(each[-1] > 0 for each in attempts) >= 1, "and they went on from their states"
    check_files(tiny_plan, summary["rows"], out, tmp_path)


def check_files(plan, rows, out: Path, tmp_path: Path):
    """Each is videossm-run's, byte by byte."""
    for row in rows:
        if "error" in row:
            continue
        prompts = ["--prompt", row["prompts"][0]["prompt"]]
        for later in row["prompts"][1:]:
            prompts += ["--prompt-at", f"{later['start_s']}:{later['prompt']}"]
        file = tmp_path / "expected.mp4"
        with pytest.raises(SystemExit) as ended:
            run.main([str(plan.path), *prompts, "--seed", str(row["seeds"][0]), "--seconds", "6", "-o", str(file)])
        assert not ended.value.code
        assert (out / row["file"]).read_bytes() == file.read_bytes(), row["id"]
