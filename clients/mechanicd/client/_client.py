"""Connecting to a server, and opening runs there."""

import atexit
import logging
import os
import shlex
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from mechanicd.client import _address, _arguments, _close_time, _exit, _leftovers, _run_name, _signals, _spool_target
from mechanicd.client._deferred import deferred
from mechanicd.client._errors import InvalidArgument, MechanicdError, SessionClosed
from mechanicd.client._secrets import command_without_secrets
from mechanicd.client._session import OnOutage, Session, check_outage_policy
from mechanicd.tuner import TunerConfig, TunerState
from mechanicd.v1 import names

if TYPE_CHECKING:
    from mechanicd.client._remote import RemoteSession
    from mechanicd.client._spool_session import SpoolSession
    from mechanicd.client._targets import Targets

log = logging.getLogger("mechanicd.client")

DEFAULT_PROJECT: Final = "default"
_MAX_COMMAND: Final = 4096
_open_sessions: "weakref.WeakSet[RemoteSession | SpoolSession]" = weakref.WeakSet()
_opening = threading.Lock()
_process_of_grpc: int | None = None


def connect(target: str | None = None) -> "Client":
    """A client. Nothing is sent before the first call.

    Args:
        target: `HOST:PORT` or `unix:PATH`, several of them joined by commas, or a DNS name with several addresses: a run
            whose server is unreachable moves to the next. `file:///FOLDER` is no server: runs are written to files there, for
            `mechanicd import`. None takes MECHANICD_TARGET from the environment.

    Raises:
        InvalidArgument: TARGET_MISSING, INVALID_TARGET.
    """
    target = target if target not in (None, "") else os.environ.get("MECHANICD_TARGET")
    if not target:
        raise InvalidArgument(
            "TARGET_MISSING", "there is no server to connect to; pass target='127.0.0.1:50051' or set MECHANICD_TARGET"
        )
    _address.parse(target)
    return Client(target)


class Client:
    """A connection to one server, or to several that share a store. The first call imports grpc and opens the channel.

    Threads may share it. grpc does not survive a fork: if a process forks after its first call, every call in the child raises
    SessionClosed, FORKED_PROCESS. Start children that connect with "spawn" or "forkserver", or before the parent's first call.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._lazy: Targets | None = None

    @property
    def _targets(self) -> "Targets":
        global _process_of_grpc
        if _spool_target.is_spool(self.target):
            raise InvalidArgument(
                "INVALID_TARGET",
                f"{self.target!r} is a folder of spool files, where runs can only be written; name a server, such as "
                "127.0.0.1:50051, and bring the runs to it with `mechanicd import`",
            )
        # Checked before taking the lock: in a forked child, a thread of the parent may hold it forever.
        _process_of_grpc = _process_of_grpc or os.getpid()
        if not _grpc_is_ours():
            raise SessionClosed(
                "FORKED_PROCESS",
                f"process {os.getpid()} was forked from process {_process_of_grpc} after that one had called a server; gRPC "
                "would hang or crash here. Start it with multiprocessing's 'spawn' or 'forkserver', or before the first call",
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
        spill: "str | os.PathLike[str] | None" = None,
    ) -> Session:
        """Opens a session on a run, and fences the session that held it before.

        Args:
            run: its name in the project, such as "bert/seed0". It may have words that are filled in, such as
                "sweep/{slurm_job_id}"; `{random}` is new at each call, so to resume such a run, pass `session.name`'s end.
            project: None takes MECHANICD_PROJECT, or "default".
            config: the tuner's settings; must equal the run's if it exists.
            labels: labels to find the run by; added to those it has.
            start: where training starts: 0 from scratch (an older history is kept as a branch), a checkpoint's
                `TunerState`, or None to continue from the server's last step.
            on_outage: while the server is unreachable, "local" continues with this process's own tuner and replays the steps
                later; "hold" keeps the last S; "raise" raises ServerUnavailable.
            deadline: seconds that a step waits for its result before the server counts as unreachable.
            spill: a folder for the steps of an outage beyond 64 MiB, up to 16 GiB; without it the oldest are dropped. None
                takes MECHANICD_SPILL from the environment.

        Raises:
            InvalidArgument, ConfigMismatch, ResumeError, SessionError: the request is refused.
            AccessDenied: there is no token that is good for this, or none that may be sent.
            ServerUnavailable: no server answers, and `on_outage` is "raise" or only the server knows where to start.
        """
        _signals.await_end()
        name = full_name(project, _run_name.filled(run, _run_name.new_random()))
        checked = _arguments.labels(labels)
        config = _arguments.config(config)
        start, deadline = _arguments.start(start), _arguments.deadline(deadline)
        check_outage_policy(on_outage)
        spilled = _arguments.spill(spill)
        client = _arguments.text(f"mechanicd python, {socket.gethostname()}, process {os.getpid()}", 200)
        session: RemoteSession | SpoolSession
        if _spool_target.is_spool(self.target):
            from mechanicd.client._spool_session import open_spool

            session = open_spool(self.target, name, config, checked, start, on_outage, client, _command())
        else:
            from mechanicd.client._remote import open_session
            from mechanicd.client._targets import Route

            route = Route(self._targets, name)
            session = open_session(route, name, config, checked, start, on_outage, deadline, client, _command(), spilled)
        _open_sessions.add(session)
        _leftovers.go_on()
        _signals.watch(close_sessions)
        _exit.watch(close_sessions, _thread_failed)
        return session

    def scale_of(self, run: str, *, project: str | None = None, group: str | None = None) -> float:
        """The S that a run ended with, for a similar run to start with: `mechanize(…, s_init=client.scale_of("seed0"))`.

        The run must have finished. Otherwise its S may still change, and a training that resumes and asks again would get
        another s_init than it began with.

        Args:
            run: its name in the project.
            project: None takes MECHANICD_PROJECT, or "default".
            group: the scale group, for a run that has several.

        Raises:
            InvalidArgument: MALFORMED_NAME, RUN_NOT_FINISHED, SEVERAL_SCALES (the run has several groups, and `group` names
                none of them), NO_SCALE (its S is 0).
            MechanicdError: RUN_NOT_FOUND.
            ServerUnavailable: no server answers.
        """
        from mechanicd.client._scale_of import finished_scale
        from mechanicd.v1 import run_service_pb2

        name = full_name(project, run)
        return finished_scale(self.call("GetRun", run_service_pb2.GetRunRequest(name=name)).run, group)

    def call(self, method: str, request: Any, timeout: float = 10.0) -> Any:
        """Calls any unary method of the contract by its name, with errors of this package. `Check` is gRPC health's: bytes.

        Raises:
            MechanicdError: what the server refuses, or ServerUnavailable.
        """
        return self._targets.call(method, request, timeout)

    def watch(self, request: Any, lost: "Callable[[MechanicdError | None], None] | None" = None) -> Iterator[Any]:
        """Streams RunService.WatchRuns until the caller stops. An outage after the first answer does not end it.

        After an outage come the runs that have changed, and the names of those that are gone. Silence is noticed after 30 s.

        Args:
            request: a WatchRunsRequest.
            lost: called with the error when the server is lost, again if it then denies access, and with None when it is back;
                None logs each.

        Raises:
            MechanicdError: what the server refuses; AccessDenied at the start alone. ServerUnavailable if there was none at the
                start, or after `close()`.
        """
        from mechanicd.client._watching import watch

        return watch(self._targets, request, lost)

    @property
    def clock_ahead(self) -> float:
        """How many seconds the server's clock is ahead of this machine's, as its last list of runs said; 0.0 before that."""
        return 0.0 if self._lazy is None else self._lazy.ahead / 1e9

    def close(self) -> None:
        """Closes the connection. Close its sessions first."""
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
    spill: "str | os.PathLike[str] | None" = None,
) -> Session:
    """`connect(target).open_run(run, …)`, for a process that has one run. See `Client.open_run`."""
    client = connect(target)
    try:
        session = client.open_run(
            run,
            project=project,
            config=config,
            labels=labels,
            start=start,
            on_outage=on_outage,
            deadline=deadline,
            spill=spill,
        )
    except BaseException:
        client.close()
        raise
    session.on_close(client.close)
    return session


def make_config(**settings: Any) -> TunerConfig:
    """`TunerConfig(**settings)`. Kept for programs written for version 0.1.

    Raises:
        InvalidArgument: INVALID_CONFIG, naming the setting.
    """
    return TunerConfig(**settings)


def scale_of(target: str | None, run: str, *, project: str | None = None, group: str | None = None) -> float:
    """`connect(target).scale_of(run, …)`, on a connection of its own. See `Client.scale_of`."""
    with connect(target) as client:
        return client.scale_of(run, project=project, group=group)


def full_name(project: str | None, run: str) -> str:
    """`projects/{project}/runs/{run}`. Raises InvalidArgument MALFORMED_NAME."""
    try:
        return str(names.run_name(project or os.environ.get("MECHANICD_PROJECT") or DEFAULT_PROJECT, run))
    except names.MalformedName as error:
        raise InvalidArgument(error.reason, str(error)) from None


def _command() -> str:
    """The shell command that started this process; the server keeps it to show how to resume the run."""
    if os.environ.get("MECHANICD_SEND_COMMAND", "1") == "0":
        return ""
    return _arguments.text(shlex.join(command_without_secrets(sys.orig_argv)), _MAX_COMMAND)


def _grpc_is_ours() -> bool:
    return _process_of_grpc == os.getpid()


def _after_fork() -> None:
    """A forked child has its parent's memory but none of its threads, so the sessions remain the parent's."""
    deferred.forget()
    for session in list(_open_sessions):
        session.forget()
    _open_sessions.clear()
    _leftovers.forget()
    _signals.forget()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


def _may_wait(session: "RemoteSession | SpoolSession") -> bool:
    return not getattr(session, "connected", True)


def _thread_failed(thread: int, why: str) -> None:
    for session in list(_open_sessions):
        session.thread_failed(thread, why)


@atexit.register
def close_sessions() -> None:
    """Closes every open session at exit: as finished, or as failed if the process failed. All together take `CLOSE_SECONDS`."""
    with _close_time.together():
        _leftovers.do_all()
        failure = _exit.failure()
        for session in sorted(_open_sessions, key=_may_wait):  # those may take all the time
            try:
                session.close_left("the process ended", failure)
            except Exception:
                log.exception("closing %s failed", session.name)
