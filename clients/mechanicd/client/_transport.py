"""The wire: one gRPC channel, and one stream of steps. The only module here that imports grpc; others import it late.

Every call has a deadline. grpc's errors are translated in one place (`translate`). Signals wait while grpc's own code runs, but
not while it waits for an answer: an exception amid that code could leave a lock of the channel taken for ever.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from mechanicd.client import _address, _credentials, _token
from mechanicd.client._address import Address
from mechanicd.client._deferred import deferred
from mechanicd.client._errors import (
    MechanicdError,
    NotImplementedByServer,
    NotTrusted,
    PermissionDenied,
    ServerUnavailable,
    Unauthenticated,
    from_reason,
    said,
)
from mechanicd.v1 import errors_pb2, names, run_service_pb2_grpc, tuner_service_pb2, tuner_service_pb2_grpc

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Despite its name, how long gRPC waits for a connection that is taken and says nothing; the default is 20 s.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # A new channel gets a new connection. By default, gRPC hands it the old one of the same address, which may be dead.
    ("grpc.use_local_subchannel_pool", 1),
    # A connection that was dropped silently is found within 30 s, also by `watch` and while the trainer takes no steps.
    # The server allows this (service/_server.py).
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # by this one newer versions of gRPC wait for a ping's answer; the default is 60 s
    ("grpc.http2.max_pings_without_data", 0),
]


_MOST_STEPS: Final = 64
"""Per message; a replay sends batches of its own size."""
_MOST_GROUPS: Final = 100_000
"""Per message, over all its steps: four float64 each make 3.2 MB. A server takes 64 MiB, what lies between may take only 4."""

_CHECK: Final = "/grpc.health.v1.Health/Check"
"""Its messages stay bytes: the package that has them comes with the server, and the client does without."""

Metadata = tuple[tuple[str, str], ...]

_LINE: Final = "\n"
_PROXIED: Final = " behind the environment's HTTP proxy (NO_PROXY names hosts to be reached without it)"


class Link:
    """One open stream of steps. Send from one thread, receive from one thread."""

    def __init__(self, stub: tuner_service_pb2_grpc.TunerServiceStub, target: str, metadata: Metadata) -> None:
        self._target = target
        self._requests: queue.SimpleQueue[Sequence[tuner_service_pb2.StepRequest] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuner_service_pb2.StepResult | MechanicdError] = queue.SimpleQueue()
        self._call: Any = stub.StreamSteps(self._messages(), metadata=metadata)
        threading.Thread(target=self._read, name="mechanicd-results", daemon=True).start()

    def send(self, *steps: tuner_service_pb2.StepRequest) -> None:
        """Queues steps; they share a message with others that wait. Returns at once."""
        self._requests.put(steps)

    @property
    def ready(self) -> bool:
        """Whether `receive` would return at once."""
        return not self._results.empty()

    def receive(self, timeout: float) -> tuner_service_pb2.StepResult:
        """The next result, in the order of the steps sent.

        Raises:
            ServerUnavailable: none came in `timeout` seconds, or the stream ended.
        """
        try:
            result = self._results.get(timeout=timeout)
        except queue.Empty:
            raise ServerUnavailable(
                "DEADLINE_EXCEEDED",
                f"{self._target} returned no result within {timeout:g} s; it may be overloaded or cut off from the network",
            ) from None
        if isinstance(result, MechanicdError):
            self._results.put(result)
            raise result
        return result

    def close(self) -> None:
        """Ends the stream."""
        self._requests.put(None)
        with deferred:
            self._call.cancel()

    def _messages(self) -> Iterator[tuner_service_pb2.StreamStepsRequest]:
        """grpc iterates over this when it can send. A message costs more than the steps in it, so each takes all that wait."""
        rest: Sequence[tuner_service_pb2.StepRequest] = ()
        while (steps := rest or self._requests.get()) is not None:
            fit = max(1, _MOST_GROUPS // max(1, len(steps[0].reductions.g_norm_sq)))
            message, rest = tuner_service_pb2.StreamStepsRequest(steps=steps[:fit]), steps[fit:]
            ended = False
            while not rest and (space := min(fit, _MOST_STEPS) - len(message.steps)) > 0 and not self._requests.empty():
                more = self._requests.get()
                if more is None:
                    ended = True
                    break
                message.steps.extend(more[:space])
                rest = more[space:]
            yield message
            if ended:
                return

    def _read(self) -> None:
        try:
            for response in self._call:
                for result in response.results:
                    self._results.put(result)
            end: MechanicdError = ServerUnavailable("SERVER_UNREACHABLE", f"{self._target} ended the stream")
        except grpc.RpcError as error:
            end = translate(error, self._target)
            if isinstance(end, NotImplementedByServer):  # it has opened the session: now something else answers in its place
                end = ServerUnavailable("RPC_FAILED", end.message)
        self._results.put(end)


class Transport:
    """A channel to one server.

    Args:
        address: where the server is, and whether it speaks TLS.
        proxied: whether the HTTP proxy of the environment may stand before it.

    Attributes:
        target: the address as text, for errors.
        ahead: how many ns the server's clock is ahead of this machine's; None as long as it has not said so.
        made: when the channel was made (time.monotonic).
    """

    def __init__(self, address: Address, proxied: bool = False) -> None:
        self.address, self.target, self.proxied = address, str(address), proxied
        self.made = time.monotonic()
        self._where = self.target + _PROXIED * proxied
        self._private = _token.is_private(address, proxied)
        self.ahead: int | None = None
        options: list[tuple[str, Any]] = [*_OPTIONS, ("grpc.enable_http_proxy", int(proxied))]
        if address.name:
            # The certificate is checked against the name that the user gave, though the name was resolved here.
            options += [("grpc.ssl_target_name_override", address.name), ("grpc.default_authority", address.name)]
            credentials = grpc.ssl_channel_credentials(*_credentials.read())
            self._channel = grpc.secure_channel(address.at, credentials, options=options)
        elif self._private and _address.is_localhost(address.at):
            # gRPC resolves the name again for each connection. By these it takes only one that stays on this machine.
            local = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
            self._channel = grpc.secure_channel(address.at, local, options=options)
        else:
            self._channel = grpc.insecure_channel(address.at, options=options)
        self._tuner = tuner_service_pb2_grpc.TunerServiceStub(self._channel)
        self._runs = run_service_pb2_grpc.RunServiceStub(self._channel)
        self._health = SimpleNamespace(Check=self._channel.unary_unary(_CHECK, bytes, bytes))

    def call(self, method: str, request: Any, timeout: float, metadata: Metadata = ()) -> Any:
        """Calls a unary method of TunerService or RunService by its name, or the health service's Check, in bytes.

        Raises:
            MechanicdError: what the server refused, or ServerUnavailable.
        """
        service = next(each for each in (self._tuner, self._health, self._runs) if hasattr(each, method) or each is self._runs)
        # Anyone may ask for the health; a probe must not depend on a token.
        shown = metadata if method == "Check" else metadata + _token.header(self.address, self._private)
        answered: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            with deferred:
                future = getattr(service, method).future(request, timeout=timeout, metadata=shown)
                future.add_done_callback(answered.put)
            try:
                answered.get()
            except BaseException:
                with deferred:
                    future.cancel()
                raise
            with deferred:
                result = future.result()
                if method == "ListRuns":
                    self._hear(future)
                return result
        except grpc.RpcError as error:
            raise translate(error, self._where) from None
        except ValueError as error:
            raise self._closed(error) from None

    def watch(self, request: Any) -> Iterator[Any]:
        """RunService.WatchRuns, until the caller stops.

        Raises:
            MechanicdError: as `call`.
        """
        shown = _token.header(self.address, self._private)
        try:
            with deferred:
                call = self._runs.WatchRuns(request, metadata=shown)
        except ValueError as error:
            raise self._closed(error) from None
        try:
            for response in call:
                if self.ahead is None:
                    self._hear(call)
                yield response
        except grpc.RpcError as error:
            raise translate(error, self._where) from None
        finally:
            call.cancel()

    def _closed(self, error: ValueError) -> ServerUnavailable:
        """What grpc's ValueError says: `close` was called."""
        return ServerUnavailable("CHANNEL_CLOSED", f"this process closed the connection to {self.target}: {error}")

    def _hear(self, call: Any) -> None:
        for key, value in call.initial_metadata() or ():
            if key == names.TIME_HEADER and value.isdecimal():
                self.ahead = int(value) - time.time_ns()

    def link(self, metadata: Metadata) -> Link:
        """A new stream of steps.

        Raises:
            Unauthenticated: there is a token, and it can't be read or sent.
        """
        shown = metadata + _token.header(self.address, self._private)
        with deferred:
            return Link(self._tuner, self._where, shown)

    def close(self) -> None:
        """Closes the channel and its streams."""
        with deferred:
            self._channel.close()


def translate(error: grpc.RpcError, target: str) -> MechanicdError:
    """A grpc error as one of this package."""
    refused = _refusal(error)
    if refused is not None:
        return refused
    code, details = error.code(), error.details() or ""
    shown = said(details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServerUnavailable(
            "DEADLINE_EXCEEDED", f"{target} did not answer in time; it may be overloaded or cut off from the network"
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return _distrust(target, details) or ServerUnavailable(
            "SERVER_UNREACHABLE",
            f"no mechanicd answers at {target} ({said(details.split(_LINE)[0]) or code.name.lower()}); "
            f"start one with `mechanicd serve`, or check the address{_hint(target, details)}",
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:  # what follows is not a mechanicd's own word, but a proxy's
        advice = f"let {_token.TOKEN} or {_token.TOKEN_FILE} give a token that is good"
        return Unauthenticated("UNAUTHENTICATED", f"{target} does not know who asks ({shown}); {advice}")
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return PermissionDenied("PERMISSION_DENIED", f"{target} does not allow this ({shown})")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return NotImplementedByServer("NOT_IMPLEMENTED", f"{target} does not implement this method; upgrade it: {shown}")
    # A training must survive whatever else went wrong, so it counts as an outage.
    return ServerUnavailable("RPC_FAILED", f"{target}: {code.name}: {shown}")


def _refusal(error: grpc.RpcError) -> MechanicdError | None:
    """What a server of ours says in the trailers; None where another answered, or what it says can't be read."""
    trailers: Any = error.trailing_metadata() or ()
    with contextlib.suppress(DecodeError):
        for value in (value for key, value in trailers if key == "grpc-status-details-bin"):
            status = status_pb2.Status.FromString(value)
            info = error_details_pb2.ErrorInfo()
            for detail in status.details:
                if detail.Unpack(info) and info.domain == names.DOMAIN:
                    return from_reason(info.reason, status.message, info.metadata)
    return None


def _distrust(target: str, details: str) -> NotTrusted | None:
    """What a failed TLS handshake says, by the words of gRPC's TLS library."""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        why = said(details.partition("CERTIFICATE_VERIFY_FAILED: ")[2].partition(":")[0].strip()) or "not valid"
        advice = f"let {_credentials.CA} name a PEM file with the authority that signed it, or renew it"
        return NotTrusted("CERTIFICATE_NOT_TRUSTED", f"the certificate of {target} can't be trusted ({why}); {advice}")
    if "Hostname Verification" in details:
        return NotTrusted(
            "CERTIFICATE_NOT_TRUSTED",
            f"the certificate of {target} is for another name; use a name that it holds as the host, or give the server one "
            "for this name",
        )
    if "WRONG_VERSION_NUMBER" in details:
        return NotTrusted(
            "TLS_NOT_SPOKEN",
            f"{target} does not speak TLS; start it with --tls-cert and --tls-key, or write its address without https://",
        )
    return None


def _hint(target: str, details: str) -> str:
    """What else a connection that is closed at once may mean."""
    if "Socket closed" not in details and "Connection reset" not in details:
        return ""
    if target.startswith("https://"):
        return f". It may ask for a certificate of yours: {_credentials.CERTIFICATE} and {_credentials.KEY}"
    return f". It may speak TLS: https://{target}"


def step_error(error: tuner_service_pb2.StepError) -> MechanicdError:
    """The error of one step of a stream as one of this package."""
    known = errors_pb2.ErrorReason.values()
    reason = errors_pb2.ErrorReason.Name(error.reason) if error.reason in known else f"REASON_{error.reason}"
    return from_reason(reason, error.message, error.metadata)
