"""A gate before a real server: calls that show a good token go through, and the others are answered as a server does."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from mechanicd.v1 import names
from tests.support.servers import free_port

CODES = {"UNAUTHENTICATED": code_pb2.UNAUTHENTICATED, "PERMISSION_DENIED": code_pb2.PERMISSION_DENIED}


class Gate(grpc.GenericRpcHandler):
    """Of one server.

    Attributes:
        good: the tokens that are let through.
        reason: what the others hear; with `bare` as a proxy says it, without details.
        shut: methods that no token opens.
        seen: each call's method and the token that it showed.
    """

    def __init__(self, upstream: str, *good: str) -> None:
        self.good = set(good)
        self.reason, self.bare = "UNAUTHENTICATED", False
        self.shut: set[str] = set()
        self.seen: list[tuple[str, str | None]] = []
        self.port = free_port()
        self._upstream = grpc.insecure_channel(upstream)
        self._server: grpc.Server | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Gate":
        self._server = grpc.server(ThreadPoolExecutor(32), handlers=[self], options=[("grpc.so_reuseport", 0)])
        assert self._server.add_insecure_port(self.target) == self.port
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stop(None).wait(10)
            self._server = None

    def cut(self) -> None:
        """Ends every connection; new ones are taken."""
        self.__exit__()
        self.__enter__()

    def service(self, call: Any) -> Any:
        method = str(call.method).rpartition("/")[2]
        shown = dict(call.invocation_metadata or ()).get("authorization")
        token = None if shown is None else str(shown).removeprefix("Bearer ")
        self.seen.append((method, token))
        through = token in self.good and method not in self.shut
        if method == "StreamSteps":
            both = self._upstream.stream_stream(str(call.method))
            return grpc.stream_stream_rpc_method_handler(lambda many, context: both(many) if through else self._deny(context))
        if method == "WatchRuns":
            watch = self._upstream.unary_stream(str(call.method))
            return grpc.unary_stream_rpc_method_handler(lambda one, context: watch(one) if through else self._deny(context))
        unary = self._upstream.unary_unary(str(call.method))
        return grpc.unary_unary_rpc_method_handler(
            lambda one, context: _ask(unary, one, context) if through else self._deny(context)
        )

    def _deny(self, context: grpc.ServicerContext) -> Any:
        code = CODES[self.reason]
        if not self.bare:
            info = any_pb2.Any()
            info.Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain=names.DOMAIN))
            status = status_pb2.Status(code=code, message="this token is not good", details=[info])
            context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        by_number = {each.value[0]: each for each in grpc.StatusCode}
        context.abort(by_number[code], "this token is not good")


def _ask(unary: Callable[..., bytes], request: bytes, context: grpc.ServicerContext) -> bytes:
    try:
        return unary(request, timeout=10.0)
    except grpc.RpcError as error:
        context.set_trailing_metadata(error.trailing_metadata())  # type: ignore[attr-defined]
        context.abort(error.code(), error.details())  # type: ignore[attr-defined]
        raise
