"""Requests are decoded here. What can't be decoded, or is too large, comes to its method as `Refused`, which says why by name:
gRPC would answer without a reason."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from mechanicd.service import _limits
from mechanicd.service._errors import ServiceError
from mechanicd.v1 import tuner_service_pb2

_FEW_BYTES: Final = 2 * _limits.MOST_STEPS
"""A message of so many bytes has no more than `MOST_STEPS` steps."""
_SOME_BYTES: Final = 2**14
"""A message of so many bytes is decoded before its steps are counted."""
_AT_ONCE: Final = 1024
"""The most values of each scalar that are taken without letting other calls run in between; a step costs like `_STEP` more."""
_STEP: Final = 3
_STATE: Final = tuner_service_pb2.OpenSessionRequest.TUNER_STATE_FIELD_NUMBER


class Refused(NamedTuple):
    """In the place of a request that is refused as it is: MALFORMED_REQUEST or REQUEST_TOO_LARGE."""

    error: ServiceError


class ManySteps(NamedTuple):
    """In the place of a message of steps that would hold up others if all of them were taken at once."""

    request: tuner_service_pb2.StreamStepsRequest

    @property
    def steps(self) -> Sequence[tuner_service_pb2.StepRequest]:
        """All of them."""
        return self.request.steps

    def parts(self) -> Iterator[tuner_service_pb2.StreamStepsRequest]:
        """Its steps in their order, in messages that hold up nobody."""
        part, size = tuner_service_pb2.StreamStepsRequest(), 0
        for step in self.request.steps:
            of_step = _STEP + len(step.reductions.g_norm_sq)
            if size and size + of_step > _AT_ONCE:
                yield part
                part, size = tuner_service_pb2.StreamStepsRequest(), 0
            part.steps.append(step)
            size += of_step
        yield part


class Decoding:
    """What the generated `add_…_to_server` takes for a server, so that requests are decoded as this module says.

    Args:
        server: the server that serves the service.
        service: its descriptor.
    """

    def __init__(self, server: grpc.aio.Server, service: Any) -> None:
        self._server: Any = server  # grpc's types lack a method that generated code calls
        self._kinds = {method.name: method.input_type.full_name for method in service.methods}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Generated code adds each service twice; the other form has the methods by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Adds a service."""
        decoding = {
            name: handler._replace(request_deserializer=_decoder(name, self._kinds[name], handler.request_deserializer))
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, decoding),))
        self._server.add_registered_method_handlers(service, decoding)


def _decoder(method: str, kind: str, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    malformed = f"the request's bytes are no {kind}; send the message of the contract"
    few = {"StreamSteps": _FEW_BYTES, "OpenSession": _limits.MOST_OPENING_BYTES}.get(method, _limits.MOST_BYTES)

    def decoded(data: bytes) -> Any:
        try:
            return decode(data) if len(data) <= few else large(data)
        except DecodeError:
            return Refused(ServiceError("MALFORMED_REQUEST", malformed))

    def large(data: bytes) -> Any:
        if method != "StreamSteps":
            beside = _beside_state(data) if method == "OpenSession" else len(data)
            if beside > few:
                return _too_large(f"a {kind}", f"{beside:,}", few, "bytes", "ask for less at once")
            return decode(data)
        if len(data) > _SOME_BYTES and _limits.has_more(data, _limits.MOST_STEPS):
            return _too_many_steps(f"more than {_limits.MOST_STEPS:,}")
        request = decode(data)
        count = len(request.steps)
        if count > _limits.MOST_STEPS:
            return _too_many_steps(f"{count:,}")
        return ManySteps(request) if count > 1 and (len(data) > _SOME_BYTES or count > _AT_ONCE // (_STEP + 1)) else request

    return decoded


def _beside_state(data: bytes) -> int:
    """The bytes of an OpenSessionRequest without its tuner state, which is one field whatever it holds."""
    found = list(islice(_limits.fields(data), _limits.MOST_OPENING_FIELDS))
    return len(data) - sum(size for number, size in found if number == _STATE)


def _too_many_steps(count: str) -> Refused:
    return _too_large("a message of StreamSteps", count, _limits.MOST_STEPS, "steps", "send the steps in several messages")


def _too_large(what: str, received: str, most: int, unit: str, advice: str) -> Refused:
    told = f"{what} has {received} {unit}, and may have {most:,}: {advice}"
    return Refused(ServiceError("REQUEST_TOO_LARGE", told, {"allowed": most, "unit": unit}))
