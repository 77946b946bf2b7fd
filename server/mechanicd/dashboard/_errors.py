"""The errors of the page's API: {"error": {"reason", "message"}} with an HTTP status."""

import logging
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mechanicd.access import Denied
from mechanicd.runs import FilterError
from mechanicd.store import StoreDamaged, StoreError

log = logging.getLogger("mechanicd.dashboard")

_STATUS: Final = {
    "MALFORMED_REQUEST": 400,
    "INVALID_RANGE": 400,
    "TOO_MANY_ATTEMPTS": 429,
    "TOO_MANY_WATCHERS": 429,
    "RUN_NOT_FOUND": 404,
}
_OF_STATUS: Final = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


class ApiError(Exception):
    """A request that is refused.

    Args:
        reason: stable; it decides the status.
        message: for people: what came, what was expected, what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = _STATUS[reason]


class Json(Response):
    """JSON from plain values and numpy arrays; non-finite numbers become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else encode(content)


def encode(content: Any) -> bytes:
    """JSON bytes."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def error_body(reason: str, message: str) -> dict[str, Any]:
    """The body of every error."""
    return {"error": {"reason": reason, "message": message}}


async def _api(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Json(error_body(error.reason, str(error)), error.status)


async def _filter(_: Request, error: Exception) -> Response:
    return Json(error_body("INVALID_FILTER", str(error)), 400)


def denied(error: Denied) -> Response:
    """What somebody gets who may not."""
    if error.reason == "PERMISSION_DENIED":
        return Json(error_body(error.reason, error.message), 403)
    return Json(error_body(error.reason, error.message), 401, headers={"WWW-Authenticate": "Bearer"})


async def _denied(_: Request, error: Exception) -> Response:
    assert isinstance(error, Denied)
    return denied(error)


async def _store(_: Request, error: Exception) -> Response:
    return unavailable(error)


def unavailable(error: Exception) -> Response:
    """What one gets while the store can't be read. The log has the details."""
    log.error("store: %s", error)
    if isinstance(error, StoreDamaged):
        return Json(error_body(error.reason, str(error)), 500)
    return Json(error_body("STORE_UNAVAILABLE", "the store can't be read now; try again in a moment"), 503)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = _OF_STATUS.get(error.status_code, "MALFORMED_REQUEST")
    path = request.url.path
    said = {
        404: f"there is nothing at {path}; the API is under /api/v1",
        405: f"{path} does not take {request.method}; the Allow header names what it takes",
    }
    return Json(error_body(reason, said.get(error.status_code, error.detail)), error.status_code, headers=error.headers)


async def _other(_: Request, error: Exception) -> Response:
    return Json(error_body("INTERNAL", "the server failed to answer this request; its log has the details"), 500)


HANDLERS: Final[dict[Any, Any]] = {
    ApiError: _api,
    Denied: _denied,
    FilterError: _filter,
    StoreError: _store,
    HTTPException: _http,
    Exception: _other,
}
