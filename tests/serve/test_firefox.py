"""The page in Firefox, driven over WebDriver BiDi (w3c.github.io/webdriver-bidi). It is skipped where there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from showing import PICTURES, colours_in, decoded

client = pytest.importorskip("websockets.sync.client", reason="no websockets: make test installs it")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
pytestmark = pytest.mark.skipif(FIREFOX is None, reason="no Firefox: apt-get install firefox-esr")
PATIENCE_S = 60.0  # of a busy machine


class Page:
    """One tab. `evaluate` gives what a promise or an expression comes to, by way of JSON."""

    def __init__(self, socket: Any, url: str) -> None:
        self._socket, self._last = socket, 0
        self._ask("session.new", capabilities={})
        self._context = self._ask("browsingContext.create", type="tab")["context"]
        self._ask("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def evaluate(self, script: str) -> Any:
        expression = f"(async () => JSON.stringify((await ({script})) ?? null))()"
        answer = self._ask(
            "script.evaluate", expression=expression, target={"context": self._context}, awaitPromise=True
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def wait_until(self, script: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"never: {script}; {self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def _ask(self, method: str, **params: Any) -> Any:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("id") == self._last:
                assert answer["type"] == "success", answer
                return answer["result"]


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Callable[[str], Page]]:
    """`open_page(url)` in a Firefox of its own, with an empty profile."""
    command = [FIREFOX, "--headless", "--no-remote", "--profile", tmp_path, "--remote-debugging-port", "0"]
    firefox = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert firefox.stderr is not None
    try:
        line = next(line for line in firefox.stderr if "WebDriver BiDi listening" in line)
        threading.Thread(target=firefox.stderr.read, daemon=True).start()  # a full pipe would hold it up
        address = re.search(r"ws://\S+", line)[0]
        with client.connect(f"{address}/session", max_size=None, open_timeout=PATIENCE_S, ping_interval=None) as socket:
            yield lambda url: Page(socket, url)
    finally:
        firefox.terminate()
        firefox.wait()


def test_the_page_shows_and_steers(shapes: Any, open_page: Callable[[str], Page]) -> None:
    page = open_page(shapes.url)
    page.wait_until("performance.getEntriesByName('first-frame').length > 0")
    for prompt, colour in (("a red circle moves left on black", "red"), ("a blue square moves up on white", "blue")):
        page.evaluate(
            f"""(() => {{
              const field = document.querySelector(".panel .prompt [name=prompt]");
              field.value = "{prompt}";
              field.form.requestSubmit();
            }})()"""
        )
        page.wait_until(f"document.querySelector('.clock').textContent.includes('{prompt}')")
        _, frames = decoded(page.evaluate(f"({PICTURES})(['.picture', 9])"))
        assert colour in colours_in(frames), "the new object within 3 chunks of 3 frames"
        assert len({frame.tobytes() for frame in frames}) > 1, "the picture moves"
