"""Servers in threads of the test's own process, over a tiny plan and over the trained demo."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from tiny_plan import Tiny, write_tiny_plan

from videossm.models.family import find_family
from videossm.runtime.plan import Plan
from videossm.serve.app import create_app
from videossm.serve.host import Host
from videossm.serve.limits import Limits
from videossm.serve.metrics import Metrics


class Server:
    """`ask` asks its API."""

    def __init__(self, plan: Plan, token: str | None = None, **limits: Any) -> None:
        metrics = Metrics()
        self.host = Host(plan, Limits(**limits), metrics, threads=1)
        bound = socket.create_server(("127.0.0.1", 0))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)  # what waits, waits in the server
        self.port = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        app = create_app(self.host, self.host.start(), metrics, token)
        config = uvicorn.Config(
            app,
            log_level="error",
            ws="websockets-sansio",
            ws_max_size=1 << 20,
            ws_ping_interval=None,
            timeout_keep_alive=600,  # else it may close a connection as a request comes
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([bound],), daemon=True)
        self._thread.start()
        self._session = requests.Session()

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        return self._session.request(method, self.url + path, timeout=60, **more)

    def create(self, prompt: str = "a red circle", **more: Any) -> dict[str, Any]:
        answer = self.ask("POST", "/api/streams", json={"prompt": prompt, **more})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def clear(self) -> None:
        for each in self.ask("GET", "/api/streams").json()["streams"]:
            self.ask("DELETE", f"/api/streams/{each['id']}")

    def close(self) -> None:
        self._session.close()
        self._server.should_exit = True
        self._thread.join(20)
        self.host.stop()


@pytest.fixture(scope="session")
def tiny_plan(shared: Callable[[str, Callable[[Path], object]], Path]) -> Plan:
    """24 frames a second in chunks of 3, so that tests need not wait."""

    def make(folder: Path) -> None:
        write_tiny_plan(folder / "tiny.plan", Tiny(fps=24.0), "tiny")

    return Plan.open(shared("serve", make) / "tiny.plan")


@pytest.fixture(scope="module")
def serving() -> Iterator[Callable[..., Server]]:
    """`serving(plan, **limits)`: a server that is closed at the end of the module."""
    made: list[Server] = []

    def start(plan: Plan, **options: Any) -> Server:
        made.append(Server(plan, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def server(serving: Callable[..., Server], tiny_plan: Plan) -> Server:
    """Its viewers may be as slow as they like and miss nothing."""
    return serving(tiny_plan, streams=6, viewers=12, ahead_chunks=1000)


@pytest.fixture(scope="module")
def shapes_plan(shared: Callable[[str, Callable[[Path], object]], Path]) -> Plan:
    """The trained demo, the same export as that of the tests of export."""

    def make(folder: Path) -> None:
        from videossm.export.build import BuildOptions, build_plan

        plan, canonical = folder / "engine.plan", folder / "canonical"
        plan.mkdir()
        canonical.mkdir()
        build_plan(find_family("shapes").load("shapes", {}, False), BuildOptions("own", "contrib", 23), plan, canonical)

    return Plan.open(shared("shapes-contrib", make) / "engine.plan")


@pytest.fixture(scope="module")
def shapes(serving: Callable[..., Server], shapes_plan: Plan) -> Server:
    return serving(shapes_plan)


@pytest.fixture(autouse=True)
def no_stream_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").clear()
