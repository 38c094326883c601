"""What a visitor is refused for, and how that is told."""

from __future__ import annotations

from pydantic import ValidationError
from starlette.responses import JSONResponse

from videossm.runtime.cli import one_line
from videossm.runtime.errors import UserError, shown

_MOST_SHOWN = 200  # characters of a message's own words


class TooManyError(UserError):
    """A limit of the server is reached."""


class RefusedError(UserError):
    """A request that is answered with `status`."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


def told(error: ValidationError) -> str:
    """The first problem of a body or message, on one line."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "body"
    got = "nothing" if first["type"] == "missing" else shown(first["input"])
    return f"{field[:_MOST_SHOWN]}: got {got}, expected: {first['msg'][:_MOST_SHOWN]}; change it"


def refusal(error: UserError) -> JSONResponse:
    """A wrong input as a response."""
    status = 429 if isinstance(error, TooManyError) else error.status if isinstance(error, RefusedError) else 422
    return JSONResponse({"error": one_line(str(error))}, status)
