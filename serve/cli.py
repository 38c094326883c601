"""`videossm-serve`: a page that shows a plan's streams and steers them, and an API beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import webbrowser
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from videossm.runtime.cli import Command, say
from videossm.runtime.cli.device import device_options
from videossm.runtime.errors import BackendError, UserError
from videossm.runtime.plan import Plan
from videossm.runtime.preflight import require_run

if TYPE_CHECKING:
    from videossm.serve.host import Host
    from videossm.serve.metrics import Metrics

TOKEN = "VIDEOSSM_TOKEN"  # of the environment: a command line is shown to everybody on the machine
_PACKAGES = ("prometheus_client", "starlette", "uvicorn", "websockets")
_SHORTEST_TOKEN = 16
_MOST_MESSAGE_BYTES = 1 << 20  # of a WebSocket; longer ones end the connection, shorter ones are answered
_MOST_CONNECTIONS = 256
_GOODBYE_S = 2


@click.command(cls=Command)
@click.argument("plan", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but this machine's own needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8188, show_default=True, help="0 for a free one.")
@device_options
@click.option("--threads", type=int, help="Of the CPU; ONNX Runtime's own number if not given.")
@click.option("--max-streams", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option("--idle", type=click.FloatRange(1), default=300.0, show_default=True, help="Seconds, see below.")
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
def serve(
    plan: str,
    host: str,
    port: int,
    device: str | None,
    provider: str | None,
    threads: int | None,
    max_streams: int,
    idle: float,
    show: bool,
) -> None:
    """Shows the streams of PLAN on a page and lets them be steered. Ctrl-C ends it.

    A stream that nobody watches makes nothing, and is deleted after --idle seconds. Bound to another address than this
    machine's own, every visitor needs the token that is printed, or that of the environment's VIDEOSSM_TOKEN.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise BackendError(f"videossm-serve: got no {missing[0]}, expected it; pip install 'videossm[serve]'")
    from videossm.serve.guard import is_loopback
    from videossm.serve.host import Host
    from videossm.serve.limits import Limits
    from videossm.serve.metrics import Metrics

    opened = Plan.open(plan)
    token = _token(is_loopback(host))
    with _bound(host, port) as bound:
        require_run(opened, device)
        metrics = Metrics()
        limits = Limits(streams=max_streams, idle_s=idle)
        streams = Host(opened, limits, metrics, device=device, threads=threads, provider=provider)
        where = streams.start()
        say(f"preflight: {opened.name} runs here, on {where}")
        url = f"http://{_shown(host)}:{bound.getsockname()[1]}/" + (f"#token={token}" if token else "")
        say(f"videossm-serve: {url} (Ctrl-C ends it)")
        if show:
            webbrowser.open(url)
        try:
            _run(streams, where, metrics, token, bound)
        finally:
            streams.stop()


def _token(loopback: bool) -> str | None:
    given = os.environ.get(TOKEN)
    if given is not None and len(given) < _SHORTEST_TOKEN:
        raise UserError(f"{TOKEN}: got {len(given)} characters, expected {_SHORTEST_TOKEN} or more; choose another")
    return given or (None if loopback else secrets.token_urlsafe(_SHORTEST_TOKEN))


def _bound(host: str, port: int) -> socket.socket:
    """Before anything is loaded: an address that is taken is told at once."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"--host, --port: cannot listen on {host}:{port} ({why}); choose another") from error


def _shown(host: str) -> str:
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"[{host}]" if ":" in host else host


def _run(streams: Host, device: str, metrics: Metrics, token: str | None, bound: socket.socket) -> None:
    """Until a signal ends it. uvicorn raises the signal anew when it is done, for the command's own way to end."""
    import uvicorn

    from videossm.serve.app import create_app

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """The streams end first, and with them what is sent to their viewers."""
            await asyncio.to_thread(streams.stop)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        create_app(streams, device, metrics, token),
        log_level="error",
        access_log=False,  # it would hold tokens
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        ws="websockets-sansio",
        ws_max_size=_MOST_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # video is packed already
        timeout_graceful_shutdown=_GOODBYE_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_error)
    Server(config).run(sockets=[bound])


def _is_error(record: logging.LogRecord) -> bool:
    """That a request which outlasts the server by _GOODBYE_S is cut off is none."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown" not in record.getMessage()


if __name__ == "__main__":
    serve()
