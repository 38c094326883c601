"""The page in a real browser: Debian's Chromium, driven by Playwright's client. It is skipped where there is none.

`VIDEOSSM_SCREENSHOTS=folder` keeps the pictures of docs/images.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from showing import PICTURES, colours_in, decoded

from videossm.models.shapes.detector import observe

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: make test installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
PATIENCE_MS = 60_000  # of a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(url, script=None, **context)`: with `script` run before the page's own. Fails on its errors."""
    contexts, errors = [], []

    def start(url: str, script: str | None = None, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 900}, **options})
        contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("websocket", lambda socket: start.sockets.append(socket.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    start.sockets = []
    yield start
    for context in contexts:
        context.close()
    assert errors == []


def pictures(page: Any, count: int, selector: str = ".picture") -> tuple[list[str], np.ndarray]:
    """What the clock says beside `count` frames that are shown, and they [T, H, W, 3]."""
    return decoded(page.evaluate(PICTURES, [selector, count]))


def wait_until(page: Any, script: str) -> None:
    """Playwright's own wait would need the page to allow eval, which its policy does not."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(script):
        assert time.monotonic() < deadline, f"never: {script}; {page.inner_text('header')}"
        page.wait_for_timeout(20)


def wait_for_chunk(page: Any, chunk: int) -> None:
    wait_until(page, f"/chunk (\\d+)/.exec(document.querySelector('.clock')?.textContent)?.[1] >= {chunk}")


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("VIDEOSSM_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_the_page_shows_steers_forks_saves_and_resumes(shapes, open_page, tmp_path):
    page = open_page(shapes.url)
    wait_until(page, "performance.getEntriesByName('first-frame').length > 0")
    assert "codec=h264" in open_page.sockets[0], "by WebCodecs"
    prompt = page.locator(".panel .prompt [name=prompt]")
    page.get_by_role("button", name="Pause").wait_for()
    assert observe(pictures(page, 6)[1]).colour == shapes.host.plan.manifest.text.examples[0].split()[1]
    begun = {"red": "a red circle moves left on black", "blue": "a blue square moves up on white"}
    prompt.fill(begun["red"])
    prompt.press("Enter")
    wait_until(page, "document.querySelector('.clock').textContent.includes('a red circle moves left')")
    _, frames = pictures(page, 6)
    assert "red" in colours_in(frames)
    assert len({frame.tobytes() for frame in frames}) > 1, "the picture moves"

    before = shapes.ask("GET", "/api/streams").json()["streams"][0]["next_chunk"]
    prompt.fill(begun["blue"])
    page.locator(".panel .prompt button").click()
    page.get_by_role("status").get_by_text("follows: a blue square").wait_for()
    first = shapes.ask("GET", "/api/streams").json()["streams"][0]["history"][-1]
    assert first["prompts"] == [begun["blue"]]
    wait_until(page, "document.querySelector('.clock').textContent.includes('a blue square')")
    texts, frames = pictures(page, 9)
    changed = [number for number, seen in enumerate(frames) if "blue" in colours_in(seen[None])]
    assert changed, "the new object within 3 chunks of 3 frames"
    assert int(texts[0].split("chunk ")[1].split(":")[0]) >= before

    page.get_by_role("button", name="Fork").click()
    page.get_by_role("heading", name="Stream 2").wait_for()
    fork = page.locator(".panel").nth(1)
    fork.locator(".prompt [name=prompt]").fill("a green triangle stands still on gray")
    fork.locator(".prompt button").click()
    wait_until(page, "document.querySelectorAll('.clock')[1].textContent.includes('a green triangle')")
    assert "green" in colours_in(pictures(page, 9, ".panel:nth-child(2) .picture")[1])
    picture(page, "serve-fork")

    with page.expect_download() as download:
        page.locator(".panel").first.get_by_role("link", name="Save state").click()
    state = tmp_path / "s.safetensors"
    download.value.save_as(state)
    page.locator(".panel").nth(1).get_by_role("button", name="End").click()
    page.get_by_text("Stream 2 has ended").wait_for()

    page.reload()
    page.get_by_role("heading", name="Stream 1").wait_for()
    assert page.locator(".panel").count() == 1
    wait_until(page, "document.querySelector('.clock').textContent.includes('a blue square')")

    page.locator("[name=state]").set_input_files(state)
    page.get_by_role("heading", name="Stream 2").wait_for()
    wait_until(page, "document.querySelectorAll('.clock')[1].textContent.includes('a blue square')")
    streams = shapes.ask("GET", "/api/streams").json()["streams"]
    assert [stream["prompts"] for stream in streams] == [[begun["blue"]]] * 2
    assert streams[1]["history"][0]["start_s"] > 0, "it goes on where it was saved"
    shapes.clear()


def test_without_webcodecs_there_are_pictures(server, open_page):
    page = open_page(f"{server.url}/#{server.create()['id']}", "delete window.VideoDecoder")
    wait_for_chunk(page, 2)
    _, jpeg = pictures(page, 4)
    assert "codec=jpeg" in open_page.sockets[0]
    assert len({frame.tobytes() for frame in jpeg}) > 1
    assert jpeg.shape[1:] == (32, 32, 3)


def test_a_decoder_that_fails_is_replaced_by_pictures(server, open_page):
    broken = "VideoDecoder.prototype.decode = function () { throw new Error('broken') }"
    page = open_page(f"{server.url}/#{server.create()['id']}", broken)
    wait_for_chunk(page, 2)
    assert "pictures instead" in page.get_by_role("status").inner_text()


def test_the_first_frame_is_timed(server, open_page):
    """benchmarks/serve.py reads it."""
    page = open_page(f"{server.url}/#{server.create()['id']}")
    wait_until(page, "performance.getEntriesByName('first-frame').length > 0")


def test_keys_reach_everything_and_errors_are_told(server, open_page):
    page = open_page(f"{server.url}/#{server.create()['id']}")
    wait_for_chunk(page, 1)
    names = []
    for _ in range(14):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.getAttribute('name') || document.activeElement.textContent"))
    assert [name for name in names if name in ("pause", "fork", "save", "end")] == ["pause", "fork", "save", "end"]
    page.locator(".panel [name=prompt]").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("a pink circle\n")
    page.get_by_role("alert").get_by_text("unknown word 'pink'").wait_for()
    page.locator(".panel [name=prompt]").fill("green")
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("Stream 1 follows: green").wait_for()
    assert page.get_by_role("alert").inner_text() == ""
    page.get_by_role("button", name="Pause").press("Enter")
    page.get_by_role("status").get_by_text("Stream 1 is paused").wait_for()
    assert page.get_by_role("button", name="Go on").get_attribute("aria-pressed") == "true"
    assert "green" in page.get_by_role("list").inner_text()
    for canvas in page.locator("canvas").all():
        assert canvas.get_attribute("role") == "img" and canvas.get_attribute("aria-label")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_either_colour_scheme(server, open_page, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme, "has_touch": True, "is_mobile": True}
    page = open_page(f"{server.url}/#{server.create()['id']}", **phone)
    wait_for_chunk(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light"), ground
    sizes = page.evaluate(
        "[...document.querySelectorAll('button, .button')].map(b => b.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 40, "a finger's size"


def test_a_lost_connection_comes_back(server, open_page):
    page = open_page(f"{server.url}/#{server.create()['id']}")
    wait_for_chunk(page, 1)
    page.context.set_offline(True)
    stream = next(iter(server.host.streams.values()))
    for viewer in stream._viewers:
        viewer.end()
    time.sleep(0.2)
    page.context.set_offline(False)
    reached = stream.rollout.next_index
    wait_for_chunk(page, reached + 2)


def test_with_a_token(serving, tiny_plan, open_page):
    token = "a-token-of-some-length"
    server = serving(tiny_plan, token=token)
    page = open_page(server.url)
    page.get_by_role("alert").get_by_text("token: got none or a wrong one").wait_for()
    assert page.get_by_role("button", name="New stream").is_disabled(), "what a stream takes, the plan says"
    page = open_page(f"{server.url}/#token={token}")
    page.locator("#begin [name=prompt]").fill("red")
    page.get_by_role("button", name="New stream").click()
    wait_for_chunk(page, 1)
    assert token not in page.url
    page.reload()
    wait_for_chunk(page, 1)
