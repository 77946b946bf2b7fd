"""How a call is refused over gRPC: a status, and in its trailer what `ErrorReason` documents."""

import logging
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from mechanicd.service._audit import CALL
from mechanicd.service._errors import ServiceError
from mechanicd.v1 import names

log = logging.getLogger("mechanicd.service")

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


async def abort(context: Any, error: ServiceError) -> NoReturn:
    """Refuses a call."""
    _note(error.reason)
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=names.DOMAIN, metadata=error.metadata)]
    if error.bad_fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=bad.field, reason=bad.reason, description=bad.message)
            for bad in error.bad_fields
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    status = status_pb2.Status(code=error.code, message=error.message, details=map(_any, details))
    await context.abort(
        _CODES[error.code], error.message, trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),)
    )
    raise AssertionError("abort raises")


async def fail(context: Any) -> NoReturn:
    """A bug, reported with a fixed text: grpcio would send the exception itself, which may name hosts, files and values.

    It has no reason code: a client treats a bare INTERNAL as an outage, so that training survives it.
    """
    _note("INTERNAL")
    log.exception("a request failed unexpectedly")
    await context.abort(grpc.StatusCode.INTERNAL, "the server failed to answer this request; its log has the details")
    raise AssertionError("abort raises")


def _note(result: str) -> None:
    call = CALL.get(None)
    if call is not None:
        call.result = result


def _any(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
