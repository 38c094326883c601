"""What a command starts with: Ctrl-C while it loads is no traceback, and closed streams are filled."""

from __future__ import annotations

import configparser
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videossm import commands

ROOT = Path(__file__).parents[2]


def entries():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    return dict(line.split(" = ") for line in lines if line)


def test_every_installed_command_starts_here(monkeypatch):
    monkeypatch.setattr(commands, "_start", lambda module, command: started.append((module, command)))
    for script, entry in entries().items():
        started: list[tuple[str, str]] = []
        module, _, function = entry.partition(":")
        assert module == "videossm.commands" and script == f"videossm-{function}"
        getattr(commands, function)()
        ((target, command),) = started
        source = ROOT / Path(*target.split(".")[1:]).with_suffix(".py")
        assert f"\ndef {command}(" in source.read_text() and f"\n    {command}()\n" in source.read_text()


LOADING = """
from videossm import commands
load = commands.import_module
commands.import_module = lambda module: (print(flush=True), load(module))[1]
commands.run()
"""  # says when it begins to


@pytest.mark.parametrize("wait_s", [0.1, 0.2, 0.3])
def test_ctrl_c_while_it_loads(wait_s):
    command = [sys.executable, "-c", LOADING, "none.plan", "--prompt", "red"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (-signal.SIGINT, 130, 2), "2: it had ended already"
    assert b"Traceback" not in err and err.count(b"\n") <= 2


def test_what_is_opened_is_no_standard_stream(tmp_path):
    """A library that prints to stdout would write into the video."""
    script = "from videossm import commands; commands._fill_standard_streams(); print(open('x', 'w').fileno() > 2)"
    command = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env={**os.environ})
    assert done.stdout == b"True\n"
