"""A session without a network: this process's own tuner gives S, and each step is appended to a file for `mechanicd import`."""

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import time_ns
from typing import Final

from mechanicd.client import _spool_format, _spool_history, _spool_target
from mechanicd.client._deferred import deferred
from mechanicd.client._errors import MechanicdError, ServerUnavailable, SessionClosed, SessionFenced
from mechanicd.client._leftovers import do_later
from mechanicd.client._session import OnOutage, Session
from mechanicd.client._signals import Turn
from mechanicd.client._spool_file import SpoolFile, unwritable
from mechanicd.client._spool_step import StepWriter
from mechanicd.client._wire import STATUS, config_out
from mechanicd.tuner import Reductions, TunerConfig, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

log = logging.getLogger("mechanicd.client")

KEPT_BYTES: Final = 64 * 2**20
"""How much of what can't be written is kept in memory. Past it no further steps are kept, and the history shows a gap."""
_MEANWHILE: Final[Mapping[OnOutage, str]] = {"local": "continues", "hold": "keeps the last S", "raise": "stops"}
_TUNED: Final = resources_pb2.STEP_OUTCOME_TUNED
_NON_FINITE: Final = resources_pb2.STEP_OUTCOME_NON_FINITE
_HELD: Final = resources_pb2.STEP_OUTCOME_HELD

_sessions: "weakref.WeakValueDictionary[Path, SpoolSession]" = weakref.WeakValueDictionary()
"""The sessions of this process by their file: a new one fences the old one, as at a server."""


def open_spool(
    target: str,
    name: str,
    config: TunerConfig,
    labels: Mapping[str, str],
    start: int | TunerState | None,
    on_outage: OnOutage,
    client: str,
    command: str,
) -> "SpoolSession":
    """Opens a run in a folder of spool files.

    Args:
        target: the folder, as `file:///FOLDER`.
        name: `projects/{project}/runs/{run}`.
        start: where training starts: after a step of the file (0: from scratch), at a checkpoint's tuner state, or None for the
            file's last step.
        on_outage: what a step does while the file can't be written.
        client, command: the name of this process and the command that started it, for people who look at the run.

    Raises:
        SessionFenced: SPOOL_LOCKED.
        ServerUnavailable: SPOOL_UNWRITABLE.
        ConfigMismatch: the file has the run with another config.
        ResumeError: RESUME_STEP_UNKNOWN; the file does not have the step to start after.
        MechanicdError: SPOOL_FOREIGN, SPOOL_VERSION, SPOOL_DAMAGED.
    """
    path = _spool_target.file_of(_spool_target.folder(target), name)
    try:
        former = _sessions.get(path)
        if former is not None:
            _spool_history.start_in(path, name, config, start)  # what is refused must not stop the session that there is
            former.fence()
        file = SpoolFile(path)
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        last, state = _spool_history.start_in(path, name, config, start)
        request = tuner_service_pb2.OpenSessionRequest(
            name=name, config=config_out(config), labels=dict(labels), client=client, command=command
        )
        session = SpoolSession(request, config, state, file, on_outage)
        session.begin_recording()
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise unwritable(path, error) from None
        raise
    _sessions[path] = session
    _say_start(name, state.step, last, start)
    return session


def _say_start(name: str, step: int, last: int | None, start: int | TunerState | None) -> None:
    """Logs where a session starts, in words like a server's."""
    if last is not None and step < last and start == 0:
        log.warning("%s: training starts over: the run rewinds from step %d to its start", name, last)
    elif last is not None and step > last:
        log.warning("%s: the checkpoint is at step %d and the spool file at step %d: its state is adopted", name, step, last)
    else:
        log.info("%s: begins after step %d; the spool file was %s", name, step, "new" if last is None else f"at step {last}")


class SpoolSession(Session):
    """One training process's hold on a run in a spool file. Made by `open_spool`."""

    def __init__(
        self,
        request: tuner_service_pb2.OpenSessionRequest,
        config: TunerConfig,
        state: TunerState,
        file: SpoolFile,
        on_outage: OnOutage,
    ) -> None:
        super().__init__(request.name, config, state)
        self._request = request
        self._file = file
        self._writer = StepWriter(len(config.scale_groups))
        self._on_outage = on_outage
        self._pid = os.getpid()
        self._error: MechanicdError | None = None
        self._begun: tuple[Sequence[Reductions], float | None, bool] = ((), None, False)
        self._durable = state.step  # the last step that a flush has announced
        self._lost = 0  # steps that neither the file nor this process has
        self._warned = False

    @property
    def backlog(self) -> int:
        """How many steps are not known to be on the disk."""
        return self._state.step - self._durable

    def begin_recording(self) -> None:
        """Writes that the session begins.

        Raises:
            ServerUnavailable: SPOOL_UNWRITABLE.
        """
        if not self._record_start():
            raise unwritable(self._file.path, self._file.failure or OSError())

    def flush(self, timeout: float | None = None) -> int:
        """Syncs the file: from then on every finished step survives a power loss.

        Args:
            timeout: of no effect; the disk takes the time that it takes.

        Returns:
            The last durable step.

        Raises:
            ServerUnavailable: SPOOL_UNWRITABLE; the steps are kept in memory, and each later step and flush tries again.
            SessionError: the run is no longer this session's.
        """
        with deferred, self._turn:
            self._check()
            if self._closed:
                raise SessionClosed("SESSION_CLOSED", f"{self.name} was closed; open the run again")
            if not (self._is_contiguous() and self._file.sync()):
                raise self._unwritable()
            self._durable = self._state.step
            if self._warned:
                self._say(written=True)
            return self._durable

    def fence(self) -> None:
        """Another session of this process takes the run: what is finished is written, and each use of this one raises."""
        with deferred, self._turn:
            if not self._closed and self._error is None:
                self._file.sync()
                self._error = SessionFenced(
                    "SESSION_FENCED", f"this process opened {self.name} again; the older session has ended, use the new one"
                )
            self._file.close()

    def forget(self) -> None:
        """In a forked child: this object is a copy, the session is the parent's. Every use of it raises from now on."""
        self._error = SessionClosed(
            "FORKED_PROCESS",
            f"process {self._pid} writes {self._file.path}, but this is its forked child {os.getpid()}; train in the parent",
        )
        self._turn = Turn()  # a thread of the parent may have held it at the fork
        self._file.forget()
        self._closed = True
        _sessions.pop(self._file.path, None)

    def __del__(self) -> None:
        """A session that nobody closed and nobody can use any more is closed in the background."""
        if not getattr(self, "_closed", True):
            do_later(self._close_leftover)

    # --- a step: always within the turn ------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _send(self, step: int, groups: Sequence[Reductions], base_lr: float | None, hold: bool) -> bool:
        hold = hold or (self._on_outage == "hold" and self._file.failure is not None)
        self._begun = groups, base_lr, hold
        return hold

    def _receive(self, following: TunerState, wait: bool) -> TunerState:
        groups, base_lr, hold = self._begun
        outcome = _HELD if hold else _NON_FINITE if following.table is self._state.table else _TUNED
        message = self._writer.message(following.step, outcome, groups, following.scale, base_lr, time_ns())
        if self._is_contiguous():
            written = self._file.append(_spool_format.STEP, message)
        else:
            written = False
            self._lost += 1
        if not written or self._warned:
            self._say(written)
            if not written and self._on_outage == "raise":
                self._error = self._unwritable()
                raise self._error
        return following

    def _is_contiguous(self) -> bool:
        """Whether the next step can be kept. Steps that were not are a gap: what follows it begins at this process's state, as
        at a server that adopts it."""
        if not self._lost:
            return self._file.failure is None or self._file.kept <= KEPT_BYTES
        if not self._file.sync():
            return False
        log.error(
            "%s: the %d steps up to step %d are lost, because the spool file could not be written for too long; its history "
            "shows a gap [SPOOL_UNWRITABLE]",
            self.name,
            self._lost,
            self._state.step,
        )
        self._lost = 0
        return self._record_start()

    def _record_start(self) -> bool:
        request = tuner_service_pb2.OpenSessionRequest()
        request.CopyFrom(self._request)
        if self._state.step:
            request.tuner_state = self._state.to_bytes()
        else:
            request.after_step = 0
        return self._file.append(_spool_format.OPENED, request.SerializeToString())

    def _close(self, status: str, message: str) -> None:
        try:
            if self._error is not None:
                return
            request = tuner_service_pb2.CloseSessionRequest(status=STATUS[status], message=message)
            if self._is_contiguous():
                self._file.append(_spool_format.CLOSED, request.SerializeToString())
            if self._lost or not self._file.sync():
                log.error(
                    "%s: closed as %s while its spool file can't be written; the file may lack the last %d steps: %s",
                    self.name,
                    status,
                    self.backlog,
                    str(self._unwritable()),
                )
        finally:
            self._file.close()

    def _unwritable(self) -> ServerUnavailable:
        return unwritable(self._file.path, self._file.failure or OSError())

    def _say(self, written: bool) -> None:
        """Logs that the file can't be written, and that it can again; each once."""
        if written and self._warned:
            log.warning("%s: the spool file can be written again", self.name)
        elif not written and not self._warned:
            log.warning(
                "%s: training %s, and its steps are kept in memory: %s",
                self.name,
                _MEANWHILE[self._on_outage],
                str(self._unwritable()),
            )
        self._warned = not written
