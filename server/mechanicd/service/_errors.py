"""The service's one error class; `_grpc` translates it to gRPC."""

from collections.abc import Mapping
from typing import Final

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
}

_MOST_BYTES: Final = 800
"""The limit for each text of an error. Errors travel in trailers, and gRPC rejects trailers above 8 KiB."""


class ServiceError(Exception):
    """A refused request; it changed nothing. Long texts are shortened in the middle.

    Args:
        reason: a name of mechanicd.v1.ErrorReason; it determines the google.rpc.Code.
        message: for people: what was received, what was expected, what to do.
        metadata: the facts that ErrorReason documents for the reason.
        field: the request field at fault, if there is one (google.rpc.BadRequest).
    """

    def __init__(
        self, reason: str, message: str, metadata: Mapping[str, object] | None = None, *, field: str | None = None
    ) -> None:
        self.reason = reason
        self.code = _CODES[reason]
        self.message = _short(message)
        self.metadata = {key: _short(str(value)) for key, value in (metadata or {}).items()}
        self.field = field
        super().__init__(self.message)


def _short(text: str) -> str:
    data = text.encode()
    if len(data) <= _MOST_BYTES:
        return text
    half = _MOST_BYTES // 2 - 4
    return f"{data[:half].decode(errors='ignore')} … {data[-half:].decode(errors='ignore')}"
