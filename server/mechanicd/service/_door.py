"""The door of the gRPC service: every call is let in here, by a token or a certificate, or refused before it is decoded.

A call is checked once. In a stream of steps, a session is checked when the stream first names it. A stream whose token expires
or is revoked is ended within seconds: its client comes back with another token, or trains on without the server.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

import grpc

from mechanicd.access import Denied, Principal, Role, bearer
from mechanicd.runs import session_key
from mechanicd.service import _convert, _permissions
from mechanicd.service._audit import CALL, Audit, Call
from mechanicd.service._decoding import Refused
from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError
from mechanicd.service._keys import Access, Keys
from mechanicd.service._permissions import Rule
from mechanicd.service._refusal import abort
from mechanicd.v1.names import RunName

_HEADER: Final = "authorization"
_BEHAVIOURS: Final = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_SUBJECTS: Final = ("x509_common_name", "x509_subject_alternative_name")

RunOf = Callable[[int], Awaitable[RunName | None]]
"""The run that a session holds or held; None if the session is unknown."""


class Door(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Checks each call before its method sees it, and notes each change.

    Args:
        access: who may come in.
        read: the store's tokens.
        now: the store's time, ns since 1970.
        run_of: see `RunOf`.

    Attributes:
        keys: the tokens.
    """

    def __init__(self, access: Access, read: Callable[[], Awaitable[Any]], now: Callable[[], int], run_of: RunOf) -> None:
        _permissions.check_complete()
        self.keys = Keys(access, read, now, self._look_around)
        self._run_of = run_of
        self._streams = set[_Stream]()
        self._audit = Audit()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:  # no such method
            return None
        rule = _permissions.rule_of(details.method)
        if rule is None:
            return handler
        call = Call(details.method)
        text = _token(details.invocation_metadata)
        try:
            if text is not None or not self.keys.asks_certificates:
                call.principal = await self.keys.check(text)
        except (Denied, ServiceError) as error:
            call.refused = error.id if isinstance(error, Denied) else ""
            return self._refusing(call, rule, _told(error))
        return self._guarded(handler, call, rule, text)

    def _guarded(self, handler: Any, call: Call, rule: Rule, text: str | None) -> Any:
        (kind,) = (each for each in _BEHAVIOURS if getattr(handler, each))
        method = getattr(handler, kind)

        async def once(request: Any, context: Any) -> Any:
            with self._noting(call, rule):
                await self._enter(call, rule, request, context)
                return await method(request, context)

        async def streaming_steps(requests: Any, context: Any) -> None:
            with self._noting(call, rule):
                await self._enter(call, rule, None, context)
                async with self._staying(text, context):
                    await method(requests, context)

        async def streaming_answers(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._noting(call, rule):
                await self._enter(call, rule, request, context)
                async with self._staying(text, context), aclosing(method(request, context)) as answers:
                    async for answer in answers:
                        yield answer

        behaviours = {"unary_unary": once, "unary_stream": streaming_answers, "stream_stream": streaming_steps}
        return handler._replace(**{kind: behaviours[kind]})

    async def _enter(self, call: Call, rule: Rule, request: Any, context: Any) -> None:
        """Refuses the call, or lets it in."""
        try:
            if call.principal is None:
                call.principal = self.keys.of_certificate(_subjects(context.auth_context()))
            principal = call.principal
            if request is None or isinstance(request, Refused):  # a stream; or its method refuses it by name
                principal.require(rule.role, principal.project or None)
                call.sessions = SessionCheck(self._run_of, principal) if principal.project else None
                return
            call.runs = rule.runs(request) if rule.change else ()
            _permissions.narrow(principal, rule, request)
            _permissions.require(principal, rule, request)
            if rule.by == "session" and (principal.project or rule.change):
                run = await self._run_of(request.session)
                call.runs = () if run is None else (str(run),)
                _check_session(principal, rule.role, run)
            elif principal.project and getattr(request, "session", None):  # OpenSession: a name in their project is not enough
                _check_session(principal, rule.role, await self._run_of(request.session))
        except (Denied, ServiceError) as error:
            await abort(context, _told(error))

    def _refusing(self, call: Call, rule: Rule, error: ServiceError) -> Any:
        """Refuses a call without a look at its request. A unary method's would be received as a whole first, up to 64 MiB."""

        async def refuse(_: Any, context: Any) -> None:
            with self._noting(call, rule):
                await abort(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)

    @contextlib.contextmanager
    def _noting(self, call: Call, rule: Rule) -> Iterator[None]:
        CALL.set(call)
        try:
            yield
        except asyncio.CancelledError:
            call.result = "cancelled"
            raise
        finally:
            if rule.change:
                self._audit.note(call)

    @contextlib.asynccontextmanager
    async def _staying(self, text: str | None, context: Any) -> AsyncIterator[None]:
        """Ends a stream when its token is no longer good."""
        task = asyncio.current_task()
        assert task is not None
        stream = _Stream(text, task)
        if text is not None:
            self._streams.add(stream)
        try:
            yield
        except asyncio.CancelledError:
            if stream.denied is None:
                raise
            await abort(context, _told(stream.denied))
        finally:
            self._streams.discard(stream)

    def _look_around(self) -> None:
        """Ends the streams whose tokens are no longer good."""
        judged = {text: self._judge(text) for text in {stream.text for stream in self._streams}}
        for stream in self._streams:
            if judged[stream.text] is not None and stream.denied is None:
                stream.denied = judged[stream.text]
                stream.task.cancel()

    def _judge(self, text: str | None) -> Denied | None:
        try:
            self.keys.check_known(text)
        except Denied as denied:
            return denied
        return None


class SessionCheck:
    """Checks each session of a stream once, when it is first named.

    Args:
        run_of: see `RunOf`.
        principal: whose stream it is.
    """

    def __init__(self, run_of: RunOf, principal: Principal) -> None:
        self._run_of = run_of
        self._principal = principal
        self._known = set[int]()

    def is_new(self, request: Any) -> bool:
        """Whether a message names a session that has not been checked."""
        known, steps = self._known, request.steps
        if len(steps) == 1:  # most often
            return steps[0].session not in known
        return any(step.session not in known for step in steps)

    async def look(self, request: Any) -> None:
        """Checks the sessions of a message. Raises ServiceError PERMISSION_DENIED."""
        for session in {step.session for step in request.steps} - self._known:
            run = await self._run_of(session)
            try:
                _check_session(self._principal, Role.WRITE, run)
            except Denied as denied:
                raise _told(denied) from None
            if run is not None:
                self._known.add(session)


def _check_session(principal: Principal, role: Role, run: RunName | None) -> None:
    """Raises Denied if the run of a session is not for these hands."""
    if run is not None and not principal.allows(role, run.project):
        # Its name is not told: a session is no way to find out about other projects.
        raise Denied(
            "PERMISSION_DENIED",
            f"the session's run is not in project {principal.project}, where {principal.id} is good; use a token of its own",
        )


class _Stream:
    """An open stream: the token that let it in, and the task that answers it."""

    def __init__(self, text: str | None, task: "asyncio.Task[Any]") -> None:
        self.text = text
        self.task = task
        self.denied: Denied | None = None


def _told(error: Denied | ServiceError) -> ServiceError:
    return error if isinstance(error, ServiceError) else ServiceError(error.reason, error.message)


def _token(metadata: Iterable[tuple[str, Any]]) -> str | None:
    """The token in a call's metadata; None if there is none. Two are none that is good: one may be somebody else's."""
    found = [value for key, value in metadata if key == _HEADER]
    if len(found) > 1 or (found and not isinstance(found[0], str)):
        return ""
    return bearer(found[0] if found else None)


def _subjects(context: Mapping[str, Iterable[bytes]]) -> Iterable[str]:
    """What a client's certificate says of whose it is: common names, then alternative names."""
    for key in _SUBJECTS:
        for value in context.get(key, ()):
            yield value.decode("utf-8", "replace")


async def run_of(engine: Engine, session: int) -> RunName | None:
    """See `RunOf`. While the store is away, only sessions that are held here are known, and no other can take a step."""
    held = engine.registry.by_session.get(session)
    if held is not None:
        return RunName(held.row.project, held.row.run)
    if session > _convert.MAX_INTEGER:
        return None
    key = session_key(session)
    try:
        found = await engine.writer.call(engine.store.by_session, key)
        deleted = None if found else await engine.writer.call(engine.store.deleted, key)
    except ServiceError:
        return None
    if found is not None:
        return RunName(found[0].project, found[0].run)
    return None if deleted is None else RunName(*deleted)
