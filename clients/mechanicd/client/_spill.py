"""Steps that a backlog has no memory for: they go to a spool file, so `mechanicd import` can bring them if the trainer dies.

It is read again in order when the server is back, and removed once the server has committed all that is in it.
"""

import contextlib
import logging
import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mechanicd.client import _spool_format, _spool_target
from mechanicd.client._backlog import Entry
from mechanicd.client._errors import MechanicdError
from mechanicd.client._opening import Opener
from mechanicd.client._spool_file import SpoolFile, unwritable
from mechanicd.client._wire import STATUS
from mechanicd.tuner import TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

log = logging.getLogger("mechanicd.client")

SPILL_BYTES: Final = 16 * 2**30
"""How large a spill may become. Past it its steps are dropped, and the history shows a gap."""


class _Taken(NamedTuple):
    """What the file has of a step that was taken."""

    step: int
    scale: tuple[float, ...]


class Spill:
    """The spill of one session. Its file is there only while it holds steps.

    Args:
        folder: for the file; created if it is not there.
        opener: of the session.

    Attributes:
        steps: how many steps it holds.
        end: the tuner's state after the last of them.

    Raises:
        ServerUnavailable: SPOOL_UNWRITABLE: the folder can't be written.
    """

    def __init__(self, folder: Path, opener: Opener) -> None:
        self._opener = opener
        named = _spool_target.file_of(folder, opener.name)
        self.path = named.with_name(f"{named.stem}@{secrets.token_hex(4)}{_spool_target.SUFFIX}")  # no run has an @
        self.steps = 0
        self.end: TunerState
        self._first = 0
        self._file: SpoolFile | None = None
        self._failing = False
        self._begin = self._at = self._next = 0
        try:
            named.parent.mkdir(parents=True, exist_ok=True)
            left = sorted(named.parent.glob(f"{named.stem}@*{_spool_target.SUFFIX}"))
            self.path.touch(exist_ok=False)
            self.path.unlink()
        except OSError as error:
            raise unwritable(self.path, error) from None
        if left:
            log.warning(
                "%s: an earlier process left steps in %s that the server may lack; bring them with `mechanicd import`",
                opener.name,
                ", ".join(map(str, left)),
            )

    def push(self, before: TunerState, taken: Sequence[tuple[tuner_service_pb2.StepRequest, TunerState]]) -> bool:
        """Adds steps at the end. Returns whether all of them are there; if not, none is.

        Args:
            before: the tuner's state before the first step that the spill has, or gets.
            taken: the steps, and the tuner's state after each.
        """
        try:
            file = self._file or self._opened(before)
            if file.size > SPILL_BYTES:
                return False
            for request, state in taken:
                file.append(_spool_format.STEP, _record(request, state).SerializeToString())
            if file.failure is not None:
                raise unwritable(self.path, file.failure)
        except MechanicdError as error:
            if not self._failing:
                log.error("%s: steps can't be spilled: %s", self._opener.name, str(error))
            self._failing = True
            if not self.steps:
                self.clear()
            return False
        self._failing = False
        self.steps += len(taken)
        self.end = taken[-1][1]
        return True

    def after(self, step: int, most: int | None) -> list[Entry]:
        """The steps above one, in order, and at most so many."""
        if step + 1 < self._next:  # the server went back
            self._at, self._next = self._begin, self._first
        found: list[Entry] = []
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            for record in _spool_format.records(file, self._at):
                if len(found) == most:
                    break
                self._at = record.end
                if record.kind != _spool_format.STEP:
                    continue
                kept = resources_pb2.StepRecord.FromString(record.message)
                self._next = kept.step + 1
                if kept.step > step:
                    found.append(_entry(kept))
        return found

    def clear(self) -> None:
        """Drops all: the server has it."""
        if self._file is not None:
            self._file.close()
            self._file = None
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.steps = 0

    def lose(self) -> TunerState:
        """Drops all, because there is no room or it can't be read. Returns the state after it."""
        log.error(
            "%s: the %d steps up to step %d are lost, because %s is full or can't be read; the history shows a gap",
            self._opener.name,
            self.steps,
            self.end.step,
            self.path,
        )
        self.clear()
        return self.end

    def keep(self, status: str, message: str) -> bool:
        """Leaves the file for `mechanicd import`, with the run's end. Returns whether it is safe on the disk."""
        if self._file is None:
            return False
        request = tuner_service_pb2.CloseSessionRequest(status=STATUS[status], message=message)
        self._file.append(_spool_format.CLOSED, request.SerializeToString())
        safe = self._file.sync()
        self._file.close()
        return safe

    def forget(self) -> None:
        """In a forked child: the file is the parent's."""
        if self._file is not None:
            self._file.forget()

    def _opened(self, before: TunerState) -> SpoolFile:
        file = SpoolFile(self.path)
        request = self._opener.request(before if before.step else 0, self._opener.session)
        file.append(_spool_format.OPENED, request.SerializeToString())
        self._file = file
        self._begin = self._at = file.size
        self._first = self._next = before.step + 1
        return file


def _record(request: tuner_service_pb2.StepRequest, state: TunerState) -> resources_pb2.StepRecord:
    return resources_pb2.StepRecord(
        step=request.step,
        outcome=_outcome(request),
        reductions=request.reductions,
        scale=state.scale,
        base_lr=request.base_lr if request.HasField("base_lr") else None,
    )


def _outcome(request: tuner_service_pb2.StepRequest) -> "resources_pb2.StepOutcome":
    if request.hold:
        return resources_pb2.STEP_OUTCOME_HELD
    sent = request.reductions
    finite = all(all(map(math.isfinite, each)) for each in (sent.delta_dot_g, sent.delta_dot_x, sent.g_norm_sq, sent.x_norm_sq))
    return resources_pb2.STEP_OUTCOME_TUNED if finite else resources_pb2.STEP_OUTCOME_NON_FINITE


def _entry(record: resources_pb2.StepRecord) -> Entry:
    request = tuner_service_pb2.StepRequest(
        step=record.step,
        reductions=record.reductions,
        base_lr=record.base_lr if record.HasField("base_lr") else None,
        hold=record.outcome == resources_pb2.STEP_OUTCOME_HELD,
    )
    return Entry(request, _Taken(record.step, tuple(record.scale)))
