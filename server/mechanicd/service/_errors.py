"""The service's one error class, and how several refusals of one request become one; `_grpc` translates it to gRPC."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, overload

from google.rpc import code_pb2

_CODES: Final[Mapping[str, int]] = {
    "MALFORMED_NAME": code_pb2.INVALID_ARGUMENT,
    "RUN_NOT_FOUND": code_pb2.NOT_FOUND,
    "INVALID_CONFIG": code_pb2.INVALID_ARGUMENT,
    "CONFIG_MISMATCH": code_pb2.FAILED_PRECONDITION,
    "GROUP_COUNT_MISMATCH": code_pb2.INVALID_ARGUMENT,
    "NEGATIVE_SQUARE": code_pb2.INVALID_ARGUMENT,
    "STEP_OUT_OF_ORDER": code_pb2.OUT_OF_RANGE,
    "STEP_CONFLICT": code_pb2.FAILED_PRECONDITION,
    "SESSION_FENCED": code_pb2.ABORTED,
    "SESSION_UNKNOWN": code_pb2.NOT_FOUND,
    "RESUME_STEP_UNKNOWN": code_pb2.OUT_OF_RANGE,
    "INVALID_TUNER_STATE": code_pb2.INVALID_ARGUMENT,
    "INVALID_FILTER": code_pb2.INVALID_ARGUMENT,
    "INVALID_PAGE_TOKEN": code_pb2.INVALID_ARGUMENT,
    "INVALID_UPDATE_MASK": code_pb2.INVALID_ARGUMENT,
    "STORE_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "SERVER_DRAINING": code_pb2.UNAVAILABLE,
    "INVALID_LABELS": code_pb2.INVALID_ARGUMENT,
    "INVALID_RANGE": code_pb2.INVALID_ARGUMENT,
    "INVALID_STATUS": code_pb2.INVALID_ARGUMENT,
    "OWNERSHIP_LOST": code_pb2.ABORTED,
    "RUN_HELD": code_pb2.FAILED_PRECONDITION,
    "RUN_EXISTS": code_pb2.ALREADY_EXISTS,
    "INVALID_READ_MASK": code_pb2.INVALID_ARGUMENT,
    "RUN_DELETED": code_pb2.NOT_FOUND,
    "MALFORMED_REQUEST": code_pb2.INVALID_ARGUMENT,
    "REQUEST_TOO_LARGE": code_pb2.RESOURCE_EXHAUSTED,
    "TOO_MANY_WATCHERS": code_pb2.RESOURCE_EXHAUSTED,
    "STORE_DAMAGED": code_pb2.DATA_LOSS,
    "RUN_RENAMED": code_pb2.NOT_FOUND,
    "UNAUTHENTICATED": code_pb2.UNAUTHENTICATED,
    "PERMISSION_DENIED": code_pb2.PERMISSION_DENIED,
}

_MOST_BYTES: Final = 800
"""The limit for each text of an error, and for the descriptions of all bad fields together. Errors travel in trailers, and gRPC
rejects trailers above 8 KiB."""

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")


class BadField(NamedTuple):
    """A field of a request that is at fault (google.rpc.BadRequest.FieldViolation).

    Attributes:
        field: its path in the request, such as `config.betas`.
        reason: why it is refused, a name of mechanicd.v1.ErrorReason.
        message: for people: what was received, what was expected, what to do.
    """

    field: str
    reason: str
    message: str


def alias(key: int) -> str:
    """A decimal number that tells another's session, of this key, from others. Neither its id nor its key leaves the server."""
    return str(int.from_bytes(hashlib.sha256(f"mechanicd session {key}".encode()).digest()[:8]))


class ServiceError(Exception):
    """A refused request; it changed nothing. Long texts are shortened in the middle.

    Args:
        reason: a name of mechanicd.v1.ErrorReason; it determines the google.rpc.Code.
        message: for people: what was received, what was expected, what to do.
        metadata: the facts that ErrorReason documents for the reason.
        field: the request field at fault, if there is one.
        bad_fields: all of them, where there are several.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, object] | None = None,
        *,
        field: str | None = None,
        bad_fields: Sequence[BadField] = (),
    ) -> None:
        self.reason = reason
        self.code = _CODES[reason]
        self.message = _short(message)
        self.metadata = {key: _short(str(value)) for key, value in (metadata or {}).items()}
        if field is not None:
            bad_fields = (BadField(field, reason, message),)
        most = _MOST_BYTES // max(1, len(bad_fields))
        self.bad_fields = tuple(bad._replace(message=_short(bad.message, most)) for bad in bad_fields)
        super().__init__(self.message)


@overload
def every(first: Callable[[], A], second: Callable[[], B], /) -> tuple[A, B]: ...
@overload
def every(first: Callable[[], A], second: Callable[[], B], third: Callable[[], C], /) -> tuple[A, B, C]: ...
@overload
def every(
    first: Callable[[], A], second: Callable[[], B], third: Callable[[], C], fourth: Callable[[], D], /
) -> tuple[A, B, C, D]: ...
@overload
def every(
    first: Callable[[], A], second: Callable[[], B], third: Callable[[], C], fourth: Callable[[], D], fifth: Callable[[], E], /
) -> tuple[A, B, C, D, E]: ...
@overload
def every(*reads: Callable[[], Any]) -> tuple[Any, ...]: ...
def every(*reads: Callable[[], Any]) -> tuple[Any, ...]:
    """What each of `reads` returns. Where some are refused, the request is refused once, and every bad field is named.

    Raises:
        ServiceError: with the reason and the facts of the first refusal, and the bad fields of all.
    """
    values, refusals = [], []
    for read in reads:
        try:
            values.append(read())
        except ServiceError as error:
            refusals.append(error)
    if refusals:
        raise _joined(refusals)
    return tuple(values)


def _joined(refusals: Sequence[ServiceError]) -> ServiceError:
    first = refusals[0]
    bad_fields = [bad for refusal in refusals for bad in refusal.bad_fields]
    if len(bad_fields) < 2:
        return first
    most = max(24, _MOST_BYTES // len(bad_fields) - 48)
    listed = "; ".join(f"{bad.field}: {_short(bad.message, most)}" for bad in bad_fields)
    return ServiceError(first.reason, f"{len(bad_fields)} fields are refused: {listed}", first.metadata, bad_fields=bad_fields)


def _short(text: str, most: int = _MOST_BYTES) -> str:
    data = text.encode()
    if len(data) <= most:
        return text
    half = most // 2 - 4
    return f"{data[:half].decode(errors='ignore')} … {data[-half:].decode(errors='ignore')}"
