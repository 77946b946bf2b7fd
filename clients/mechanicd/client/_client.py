"""Connecting to a server, and opening runs there."""

import atexit
import os
import shlex
import socket
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from mechanicd.client import _signals
from mechanicd.client._errors import InvalidArgument, SessionClosed
from mechanicd.client._session import OnOutage, Session
from mechanicd.tuner import TunerConfig, TunerState
from mechanicd.v1 import names

if TYPE_CHECKING:
    from mechanicd.client._remote import RemoteSession
    from mechanicd.client._targets import Targets

DEFAULT_PROJECT: Final = "default"
_MAX_COMMAND: Final = 4096
_open_sessions: "weakref.WeakSet[RemoteSession]" = weakref.WeakSet()
_opening = threading.Lock()
_process_of_grpc: int | None = None


def connect(target: str | None = None) -> "Client":
    """A client. Nothing is sent before the first call.

    Args:
        target: `HOST:PORT` or `unix:PATH`, several of them with commas between, or a DNS name of several addresses: a run
            whose server is away goes on with the next. None takes the environment's MECHANICD_TARGET.

    Raises:
        InvalidArgument: there is no target.
    """
    target = target or os.environ.get("MECHANICD_TARGET")
    if not target:
        raise InvalidArgument("TARGET_MISSING", "no server is named; pass target='127.0.0.1:50051' or set MECHANICD_TARGET")
    return Client(target)


class Client:
    """A connection to one server, or to several over one store. grpc is imported, and the channel opened, at the first call.

    Threads may share it. grpc does not survive a fork: in a forked child of a process that has made a call, every call raises
    SessionClosed, FORKED_PROCESS. Children that connect are started by "spawn" or "forkserver", or before the parent's first
    call.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._lazy: Targets | None = None

    @property
    def _targets(self) -> "Targets":
        global _process_of_grpc
        # Said before the lock is taken: a child in whose memory another thread holds it never gets there.
        _process_of_grpc = _process_of_grpc or os.getpid()
        if not _grpc_is_ours():
            raise SessionClosed(
                "FORKED_PROCESS",
                f"process {_process_of_grpc} had called a server when it forked this one, {os.getpid()}, in which grpc would "
                "hang or crash; start it by multiprocessing's 'spawn' or 'forkserver', or before the first call",
            )
        with _opening:
            if self._lazy is None:
                from mechanicd.client._targets import Targets

                self._lazy = Targets(self.target)
            return self._lazy

    def open_run(
        self,
        run: str,
        *,
        project: str | None = None,
        config: TunerConfig | None = None,
        labels: Mapping[str, str] | None = None,
        start: int | TunerState | None = None,
        on_outage: OnOutage = "local",
        deadline: float = 2.0,
    ) -> Session:
        """Takes hold of a run, and fences whoever held it before.

        Args:
            run: its name in the project, such as "bert/seed0".
            project: None takes MECHANICD_PROJECT, or "default".
            config: the tuner's settings; must equal the run's if it exists.
            labels: what to say of the run; added to those it has.
            start: after which step this training is: 0 where it begins anew (an older history is kept as a branch), a
                checkpoint's `TunerState`, or None to go on wherever the server's run is.
            on_outage: "local", "hold" or "raise"; see RemoteSession.
            deadline: seconds a step may wait for its result.

        Raises:
            InvalidArgument, ConfigMismatch, ResumeError, SessionError: what was asked can't be, as in a forked child.
            ServerUnavailable: no server answers, and `on_outage` is "raise" or `start` only the server's to know.
        """
        from mechanicd.client._remote import open_session
        from mechanicd.client._targets import Route

        _signals.await_end()
        name = _full_name(project, run)
        try:
            checked = names.check_labels(labels or {})
        except names.MalformedName as error:
            raise InvalidArgument(error.reason, str(error)) from None
        session = open_session(
            Route(self._targets, name),
            name,
            config or TunerConfig(),
            checked,
            start,
            on_outage,
            deadline,
            client=f"mechanicd python, {socket.gethostname()}, process {os.getpid()}",
            command=_command(),
        )
        _open_sessions.add(session)
        _signals.watch(close_sessions)
        return session

    def scale_of(self, run: str, *, project: str | None = None, group: str | None = None) -> float:
        """The S that a run ended with, for another of its kind to start with: `mechanize(…, s_init=client.scale_of("seed0"))`.

        Only of a run that has finished: S of another still moves, and a training that is resumed would ask again and begin
        with another s_init than it had.

        Args:
            run: its name in the project.
            project: None takes MECHANICD_PROJECT, or "default".
            group: which scale group, of a run that has several.

        Raises:
            InvalidArgument: MALFORMED_NAME, RUN_NOT_FINISHED, SEVERAL_SCALES (a run of several groups, and none of them is
                named, or one it does not have), NO_SCALE (it never had one other than 0).
            MechanicdError: RUN_NOT_FOUND.
            ServerUnavailable: no server answers.
        """
        from mechanicd.client._scale_of import finished_scale
        from mechanicd.v1 import run_service_pb2

        name = _full_name(project, run)
        return finished_scale(self.call("GetRun", run_service_pb2.GetRunRequest(name=name)).run, group)

    def call(self, method: str, request: Any, timeout: float = 10.0) -> Any:
        """Any unary method of the contract by its name, with errors of this package.

        Raises:
            MechanicdError: what the server refused, or ServerUnavailable.
        """
        return self._targets.call(method, request, timeout)

    def watch(self, request: Any) -> Iterator[Any]:
        """RunService.WatchRuns, until the caller stops.

        Raises:
            MechanicdError: as `call`.
        """
        return self._targets.watch(request)

    def close(self) -> None:
        """Closes the connection. Sessions are closed by themselves, before."""
        if self._lazy is not None and _grpc_is_ours():
            self._lazy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def open_run(
    target: str | None,
    run: str,
    *,
    project: str | None = None,
    config: TunerConfig | None = None,
    labels: Mapping[str, str] | None = None,
    start: int | TunerState | None = None,
    on_outage: OnOutage = "local",
    deadline: float = 2.0,
) -> Session:
    """`connect(target).open_run(run, …)`, for a process that has one run. See `Client.open_run`."""
    client = connect(target)
    try:
        session = client.open_run(
            run, project=project, config=config, labels=labels, start=start, on_outage=on_outage, deadline=deadline
        )
    except BaseException:
        client.close()
        raise
    session.on_close(client.close)
    return session


def scale_of(target: str | None, run: str, *, project: str | None = None, group: str | None = None) -> float:
    """`connect(target).scale_of(run, …)`, the connection closed again. See `Client.scale_of`."""
    with connect(target) as client:
        return client.scale_of(run, project=project, group=group)


def make_config(**settings: Any) -> TunerConfig:
    """`TunerConfig(**settings)`, for settings that are known when the program runs.

    Raises:
        InvalidArgument: INVALID_CONFIG, naming the setting.
    """
    return TunerConfig(**settings)


def _full_name(project: str | None, run: str) -> str:
    try:
        return str(names.run_name(project or os.environ.get("MECHANICD_PROJECT") or DEFAULT_PROJECT, run))
    except names.MalformedName as error:
        raise InvalidArgument(error.reason, str(error)) from None


def _command() -> str:
    """How this process was started, as a shell takes it; the server keeps it with the run, to show how to resume it."""
    if os.environ.get("MECHANICD_SEND_COMMAND", "1") == "0":
        return ""
    return shlex.join(sys.orig_argv)[:_MAX_COMMAND]


def _grpc_is_ours() -> bool:
    return _process_of_grpc == os.getpid()


def _after_fork() -> None:
    """A forked child has its parent's memory and none of its threads: the sessions stay the parent's."""
    for session in list(_open_sessions):
        session.forget()
    _open_sessions.clear()
    _signals.forget()


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def close_sessions() -> None:
    """A trainer that ends without close() has finished, or failed if an exception ended it."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    for session in list(_open_sessions):
        if error is None:
            session.close(None, "the process ended")
        else:
            session.close("failed", f"{type(error).__name__}: {error}")
