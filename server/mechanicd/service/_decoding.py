"""Requests whose bytes are no message: gRPC would answer UNKNOWN without a reason, so the method gets them and refuses them."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from mechanicd.service._errors import ServiceError


class Undecodable:
    """In the place of a request that can't be decoded."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def refusal(self) -> ServiceError:
        """MALFORMED_REQUEST."""
        return ServiceError("MALFORMED_REQUEST", f"the request's bytes are no {self._kind}; send the message of the contract")


class Decoding:
    """What the generated `add_…_to_server` takes for a server, so that bad bytes become `Undecodable`.

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
        tolerant = {name: self._tolerant(name, handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, tolerant),))
        self._server.add_registered_method_handlers(service, tolerant)

    def _tolerant(self, name: str, handler: Any) -> Any:
        decode: Callable[[bytes], Any] = handler.request_deserializer
        kind = self._kinds[name]

        def decoded(data: bytes) -> Any:
            try:
                return decode(data)
            except DecodeError:
                return Undecodable(kind)

        return handler._replace(request_deserializer=decoded)
