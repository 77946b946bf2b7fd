"""Brings a spool file to a server, as its trainer would have sent it: session by session, step by step, each S compared."""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from mechanicd.client import _arguments, _spool_file, _spool_history, _spool_target
from mechanicd.client._client import Client
from mechanicd.client._connection import verify
from mechanicd.client._errors import MechanicdError, SessionError, StepConflict
from mechanicd.client._opening import CALL_SECONDS
from mechanicd.client._spool_history import History, Opening
from mechanicd.client._spool_place import Place, place
from mechanicd.client._targets import Route
from mechanicd.client._transport import Link
from mechanicd.tuner import Tuner, TunerState
from mechanicd.v1 import names, resources_pb2, run_service_pb2, tuner_service_pb2

_BATCH: Final = 256
_MOST_GROUPS: Final = 100_000
"""In a batch, over all its steps: 3.2 MB of scalars."""
_CLOSE_SECONDS: Final = 60.0
_RESULT_SECONDS: Final = 30.0
_IMPORTER: Final = "mechanicd import"
_HELD: Final = (resources_pb2.RUN_STATUS_RUNNING, resources_pb2.RUN_STATUS_SILENT)
_OPENINGS: Final = (
    resources_pb2.EVENT_KIND_OPENED,
    resources_pb2.EVENT_KIND_RESUMED,
    resources_pb2.EVENT_KIND_REWOUND,
    resources_pb2.EVENT_KIND_ADOPTED,
)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        file: the spool file.
        run: `projects/{project}/runs/{run}`; "" if no session has begun in the file.
        steps: how many steps the file has.
        imported: how many of them this import brought; the server had the others.
        status: the run's status now, as the server says; None if there is no run.
        torn: how many bytes at the end of the file are no record: what its trainer was writing when it was killed.
        live: whether a trainer writes the file now, so that more will follow.
    """

    file: Path
    run: str
    steps: int
    imported: int
    status: str | None
    torn: int
    live: bool


def import_spool(
    client: Client, path: Path, run: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Imported:
    """Brings one spool file to a server. What the server has already is compared, and not sent again.

    Args:
        client: of the server.
        path: the file.
        run: the run's name at the server, without its project; None takes the one it has in the file.
        progress: called with the steps that are done, and with their number.

    Raises:
        MechanicdError: SPOOL_FOREIGN, SPOOL_DAMAGED, SPOOL_VERSION, SPOOL_UNREADABLE: the file can't be read. RUN_DIFFERS: the
            run exists with other content. RUN_HELD: a trainer holds it. Else what the server refuses.
        ConfigMismatch: the run exists with another config.
        StepConflict: SCALE_MISMATCH: this machine or the server computes another S than the trainer did.
        ServerUnavailable: the server does not answer; call again to go on.
    """
    try:
        with path.open("rb") as file:
            live = _spool_file.is_held(path)
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())  # what the server takes must not be lost here: the trainer would take other steps
            history = _spool_history.read_history(file, path)
            if not history.openings:
                return Imported(path, "", 0, 0, None, history.torn, live)
            try:
                return _Import(client, file, history, live, run, progress).run()
            except MechanicdError as error:
                if error.reason != "RUN_RENAMED" or run is not None:
                    raise
                now = names.parse_run(error.metadata["renamed_to"]).run
                return _Import(client, file, history, live, now, progress).run()
    except OSError as error:
        raise MechanicdError("SPOOL_UNREADABLE", f"{path} can't be read: {error.strerror or error}") from None


def spool_files(path: str | Path) -> list[Path]:
    """The spool files that a path names: itself, or all in a folder and the folders in it.

    Args:
        path: a file, a folder, or the target of a training, `file:///FOLDER`.

    Raises:
        MechanicdError: SPOOL_MISSING: there is none.
    """
    given = _spool_target.folder(path) if isinstance(path, str) and _spool_target.is_spool(path) else Path(path)
    found = sorted(given.rglob(f"*{_spool_target.SUFFIX}")) if os.path.isdir(given) else [given]
    files = [each for each in found if os.path.isfile(each)]
    if not files:
        raise MechanicdError(
            "SPOOL_MISSING", f"{given} is no spool file and no folder with one; was the training's target another?"
        )
    return files


class _Import:
    def __init__(
        self,
        client: Client,
        file: BinaryIO,
        history: History,
        live: bool,
        run: str | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._client = client
        self._file = file
        self._history = history
        self._live = live
        project, name = names.parse_run(history.name)
        self._name = str(names.run_name(project, run or name))
        self._progress = progress or (lambda done, of: None)
        self._tuner = Tuner(history.config)
        self._imported = self._done = 0
        self._route = Route(client._targets, self._name)

    def run(self) -> Imported:
        """Does it."""
        history, steps = self._history, self._history.steps
        found = self._get()
        there = None if found is None else place(self._client, found[0], self._file, history)
        if found is not None and found[0].status in _HELD and found[1]:
            self._end_former(found[0])
            found = self._get()
            there = None if found is None else place(self._client, found[0], self._file, history)
        first, reached = (0, None) if there is None else (there.opening, there.step)
        before = [each.last - each.after for each in history.openings[:first]]
        self._done = sum(before) + (0 if reached is None else max(0, reached - history.openings[first].after))
        self._progress(self._done, steps)
        if found is None or there is None or self._done < steps or self._must_end(there, *found):
            for index in range(first, len(history.openings)):
                self._session(index, reached if index == first else None)
            found = self._get()
        status = resources_pb2.RUN_STATUS_UNSPECIFIED if found is None else found[0].status
        told = resources_pb2.RunStatus.Name(status).removeprefix("RUN_STATUS_").lower()
        return Imported(history.path, self._name, steps, self._imported, told, history.torn, self._live)

    def _get(self) -> tuple[resources_pb2.Run, bool] | None:
        """The run, and whether it is as an import left it; None if the server has no such run.

        That is: its last session was an import's, and nobody has closed it again by hand.
        """
        try:
            found = self._client.call("GetRun", run_service_pb2.GetRunRequest(name=self._name))
        except MechanicdError as error:
            if error.reason == "RUN_NOT_FOUND":
                return None
            raise
        ends = 0
        for event in reversed(found.events):
            if event.kind in _OPENINGS:
                return found.run, ends <= 1 and f"(by {_IMPORTER}" in event.message
            ends += event.kind == resources_pb2.EVENT_KIND_CLOSED
        return found.run, False

    def _must_end(self, found: Place, run: resources_pb2.Run, ours: bool) -> bool:
        """Whether the server has each step, but not the run's end: an import was interrupted before that, or came before it."""
        end = _end(self._history, self._live)
        ours = ours or (run.status in _HELD and bool(self._history.openings[-1].session) and not self._live)
        return ours and not found.further and (run.status, run.status_message) != (end.status, end.message)

    # --- one session -------------------------------------------------------------------------------------------------

    def _session(self, index: int, reached: int | None) -> None:
        """Brings a session, or what the server lacks of it after the step `reached`."""
        opening = self._history.openings[index]
        request = _spool_history.opened(self._file, opening)
        begin = _spool_history.start_of(request, self._history.config)
        steps = _spool_history.steps(self._file, opening)
        state = begin
        while reached is not None and state.step < reached:
            state = self._advanced(state, next(steps))
        session = self._open(request, opening, state)
        link = self._route.transport.link(self._route.metadata)
        try:
            state = self._send(link, session, state, steps)
            if state.step != opening.last:
                raise MechanicdError("SPOOL_DAMAGED", f"{self._history.path} changed while it was read; import it again")
            end = opening.closed if index < len(self._history.openings) - 1 else _end(self._history, self._live)
            if end is not None:
                self._close(session, end)
        except StepConflict as error:
            self._leave(session, error.message)
            raise
        except KeyboardInterrupt:
            self._leave(session, "the import was interrupted; import the file again to go on")
            raise
        finally:
            link.close()

    def _open(self, request: tuner_service_pb2.OpenSessionRequest, opening: Opening, state: TunerState) -> int:
        """Opens a session at the server.

        Raises:
            MechanicdError: RUN_HELD; RUN_DIFFERS: another process has changed the run since it was compared.
        """
        opened = self._reattached(request)
        if opened is None:
            self._refuse_held()
            opened = self._newly_opened(request, opening, state)
        if opened.last_step != state.step or opened.tuner_state != state.to_bytes():
            self._leave(opened.session, "the run is not as the import expected it")
            raise MechanicdError(
                "RUN_DIFFERS",
                f"{self._name} is at step {opened.last_step} with S = {list(opened.scale)[:3]}, but in {self._history.path} it "
                f"has S = {list(state.scale[:3])} after step {state.step}; did another process change the run meanwhile?",
            )
        return int(opened.session)

    def _reattached(self, request: tuner_service_pb2.OpenSessionRequest) -> tuner_service_pb2.OpenSessionResponse | None:
        """The session of an outage, if it still holds the run: its trainer is gone, and this is its last word."""
        if not request.session or self._live:
            return None
        again = tuner_service_pb2.OpenSessionRequest(name=self._name, config=request.config, session=request.session)
        try:
            opened: tuner_service_pb2.OpenSessionResponse = self._call("OpenSession", again)
        except SessionError:  # it has been closed, or a successor holds the run
            return None
        return opened

    def _newly_opened(
        self, request: tuner_service_pb2.OpenSessionRequest, opening: Opening, state: TunerState
    ) -> tuner_service_pb2.OpenSessionResponse:
        request.session = 0
        request.name = self._name
        request.client = _arguments.text(f"{_IMPORTER}, {socket.gethostname()}, process {os.getpid()}: {request.client}", 200)
        if state.step > opening.after or (opening is self._history.openings[0] and not state.step):
            request.ClearField("start")  # after the server's last step, whose state is compared below
        opened: tuner_service_pb2.OpenSessionResponse = self._call("OpenSession", request)
        return opened

    def _call(self, method: str, request: Any) -> Any:
        return self._route.transport.call(method, request, _CLOSE_SECONDS, self._route.metadata)

    def _end_former(self, run: resources_pb2.Run) -> None:
        """Ends the session of an import that was killed. What it had sent may arrive until then, so all is looked at again."""
        request = tuner_service_pb2.OpenSessionRequest(name=self._name, config=run.config, client=_IMPORTER)
        opened = self._call("OpenSession", request)
        self._leave(opened.session, "an import that was interrupted goes on")

    def _refuse_held(self) -> None:
        found = self._get()
        if found is not None and found[0].status in _HELD and not found[1]:
            raise MechanicdError(
                "RUN_HELD",
                f"{self._name} is held by a session, and an import takes no run from its trainer; stop the trainer first, or, "
                "if it is gone, `mechanicd runs close` ends its session",
            )

    def _send(self, link: Link, session: int, state: TunerState, steps: Iterator[resources_pb2.StepRecord]) -> TunerState:
        """Sends steps, some batches ahead of their results."""
        expected: deque[_Taken] = deque()
        size = max(1, min(_BATCH, _MOST_GROUPS // len(self._history.config.scale_groups)))
        while batch := list(islice(steps, size)):
            requests = []
            for step in batch:
                state = self._advanced(state, step)
                requests.append(_request(session, step))
                expected.append(_Taken(state.step, state.scale))
            link.send(*requests)
            self._receive(link, expected, keep=2 * size)
        self._receive(link, expected, keep=0)
        return state

    def _receive(self, link: Link, expected: deque["_Taken"], keep: int) -> None:
        while len(expected) > keep:
            verify(link.receive(_RESULT_SECONDS), expected.popleft())
            self._imported += 1
            self._done += 1
        self._progress(self._done, self._history.steps)

    def _advanced(self, state: TunerState, step: resources_pb2.StepRecord) -> TunerState:
        """The state after a step, computed here before the server does.

        Raises:
            StepConflict: SCALE_MISMATCH.
        """
        following = _spool_history.advanced(self._tuner, state, step)
        if following.scale != tuple(step.scale):
            raise StepConflict(
                "SCALE_MISMATCH",
                f"{self._history.path}: at step {step.step} the trainer had S = {list(step.scale)[:3]}, but here it is "
                f"{list(following.scale[:3])}; they must be equal bit for bit. Check that both run the same mechanicd",
            )
        return following

    def _close(self, session: int, end: tuner_service_pb2.CloseSessionRequest) -> None:
        request = tuner_service_pb2.CloseSessionRequest(session=session, status=end.status, message=end.message)
        self._call("CloseSession", request)

    def _leave(self, session: int, message: str) -> None:
        """Closes a session that is not brought to its end."""
        request = tuner_service_pb2.CloseSessionRequest(
            session=session, status=resources_pb2.RUN_STATUS_PREEMPTED, message=_arguments.text(message, 1000)
        )
        with contextlib.suppress(MechanicdError):
            self._route.transport.call("CloseSession", request, CALL_SECONDS, self._route.metadata)


class _Taken(NamedTuple):
    """What the server must answer to a step."""

    step: int
    scale: tuple[float, ...]


def _end(history: History, live: bool) -> tuner_service_pb2.CloseSessionRequest:
    """How the run ended; where the file does not say, that it did not."""
    if history.openings[-1].closed is not None:
        return history.openings[-1].closed
    why = "its trainer still writes more" if live else "its trainer was killed, or the file is a part of another"
    message = f"imported up to step {history.last}, where the spool file ends without the run's end: {why}"
    return tuner_service_pb2.CloseSessionRequest(status=resources_pb2.RUN_STATUS_PREEMPTED, message=message)


def _request(session: int, step: resources_pb2.StepRecord) -> tuner_service_pb2.StepRequest:
    return tuner_service_pb2.StepRequest(
        session=session,
        step=step.step,
        reductions=step.reductions,
        base_lr=step.base_lr if step.HasField("base_lr") else None,
        hold=step.outcome == resources_pb2.STEP_OUTCOME_HELD,
        time_ns=_time_ns(step.time),
    )


def _time_ns(time: Timestamp) -> int:
    """In nanoseconds since 1970; 0 where the file has no time, as early ones, or one that is out of range."""
    return time.seconds * 10**9 + time.nanos if 0 <= time.seconds < 2**33 and 0 <= time.nanos < 10**9 else 0
