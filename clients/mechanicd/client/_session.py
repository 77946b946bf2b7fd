"""What a training loop uses: one step at a time, wherever the tuner runs."""

import contextlib
import logging
from _thread import get_ident
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, get_args

from mechanicd.client import _arguments, _exit, _leftovers
from mechanicd.client._deferred import deferred
from mechanicd.client._errors import InvalidArgument, MechanicdError, SessionClosed
from mechanicd.client._signals import Turn, told_to_stop
from mechanicd.tuner import Reductions, Tuner, TunerConfig, TunerState

log = logging.getLogger("mechanicd.client")

OnOutage: TypeAlias = Literal["local", "hold", "raise"]
"""What a step does while the server is unreachable: use this process's own tuner, keep the last S, or raise."""

_MOST_MESSAGE: Final = 1000
ON_OUTAGE: Final[tuple[OnOutage, ...]] = get_args(OnOutage)


def check_outage_policy(policy: object) -> None:
    """Raises InvalidArgument INVALID_OUTAGE_POLICY."""
    if policy not in ON_OUTAGE:
        raise InvalidArgument("INVALID_OUTAGE_POLICY", f"on_outage={policy!r}; choose one of {', '.join(ON_OUTAGE)}")


class Session(ABC):
    """One training process's hold on a run.

    A step is `begin(reductions)`, then whatever may overlap (BASE's step), then `finish()`, which returns S_{t+1}. `step` does
    both. A session keeps its own copy of the tuner, which computes the same bits as the server's. None of the three stops
    halfway for a signal (Ctrl-C): its handler is called when they have returned.

    Attributes:
        config: the tuner's settings.
        name: `projects/{project}/runs/{run}`, or "" for a session without a server.
    """

    def __init__(self, name: str, config: TunerConfig, state: TunerState) -> None:
        self.name = name
        self.config = config
        self._tuner = Tuner(config)
        self._state = state
        self._next: TunerState | None = None
        self._closed = False
        self._skipping = False
        self._callbacks: list[Callable[[], None]] = []
        self._turn = Turn()
        self._thread = 0  # that took the last step
        self._failure = ""  # what ended that thread

    @property
    def state(self) -> TunerState:
        """The tuner's state after the last finished step; immutable."""
        return self._state

    @property
    def scales(self) -> tuple[float, ...]:
        """S to use now, one float per scale group; 0 before the first step."""
        return self._state.scale

    @property
    def scale(self) -> float:
        """S to use now, of a run with one scale group; 0 before the first step.

        Raises:
            InvalidArgument: SEVERAL_SCALES; use `scales`.
        """
        return only_scale(self.scales)

    def begin(self, reductions: Reductions | Sequence[Reductions], *, base_lr: float | None = None, hold: bool = False) -> bool:
        """Sends the reductions of the next step and returns at once.

        Args:
            reductions: one `Reductions` per scale group, in the order of `config.scale_groups`; for one group, it alone. Its
                scalars are float64; other numbers (a float32, a tensor of one element) are converted.
            base_lr: BASE's learning rate at this step, for the record.
            hold: keep S for this step; the step counts and is recorded, but the tuner does not take it.

        Returns:
            Whether the tuner takes the step: False if it is held, or if a scalar is NaN or infinite.

        Raises:
            InvalidArgument: GROUP_COUNT_MISMATCH, NEGATIVE_SQUARE, INVALID_REDUCTIONS, or INVALID_SETTING for `base_lr` and
                `hold`; nothing was sent.
            SessionClosed: after `close()`, or if the last `begin` was not finished.
        """
        with deferred, self._turn:
            self._check()
            if self._closed:
                raise SessionClosed("SESSION_CLOSED", f"{self.name or 'the session'} was closed; open the run again")
            if self._next is not None:
                raise SessionClosed("STEP_NOT_FINISHED", f"step {self._next.step} has already begun; call finish() first")
            groups = self._tuner.groups(reductions)
            self._thread = get_ident()
            base_lr = None if base_lr is None else _arguments.real("base_lr", base_lr)
            hold = _arguments.flag("hold", hold)
            hold = self._send(self._state.step + 1, groups, base_lr, hold)
            # While the scalars travel, this process's own copy of the tuner takes the same step.
            h = None if hold else self._tuner.h(self._state, groups)
            self._next = self._tuner.hold(self._state) if h is None else self._tuner.advance(self._state, h)
            self._say_skipped(groups, skipped=h is None and not hold)
            return h is not None

    def finish(self, *, wait: bool = True) -> tuple[float, ...]:
        """Returns S_{t+1} of the step that was begun, one float per scale group; finite and ≥ 0.

        Args:
            wait: whether to wait for the server's answer, which must have the same bits. If not, this process's own S is
                returned at once and the answer is verified later, by a step that begins after it arrived, by `flush` or by
                `close`, which raise what the server refused. If an outage would change S (`on_outage` is not "local"), the
                step always waits.

        Raises:
            SessionError, ServerUnavailable: what ended the session.
        """
        with deferred, self._turn:
            if self._next is None:
                self._check()
                raise SessionClosed("STEP_NOT_BEGUN", "no step has begun; call begin(reductions) first")
            following, self._next = self._next, None
            self._state = self._receive(following, wait)
            return self._state.scale

    def step(self, reductions: Reductions) -> float:
        """Takes one step of a run with one scale group: `begin`, then `finish`. Returns S_{t+1}.

        Raises:
            InvalidArgument: the run has several scale groups; use begin and finish.
        """
        if len(self.config.scale_groups) != 1:
            raise InvalidArgument(
                "GROUP_COUNT_MISMATCH",
                f"step() is for one scale group, but this run has {len(self.config.scale_groups)}; use begin() and finish()",
            )
        with deferred:
            self.begin(reductions)
            return self.finish()[0]

    @abstractmethod
    def flush(self, timeout: float | None = None) -> int:
        """Waits until every finished step is durable; returns the last durable step."""

    def close(self, status: str | None = None, message: str = "") -> None:
        """Closes the session and records why. Closing twice does nothing.

        Args:
            status: "finished", "failed" or "preempted"; None means finished. After a SIGTERM or a SIGHUP, every status but an
                explicit "finished" is recorded as "preempted".
            message: why, for people.

        Raises:
            InvalidArgument: INVALID_STATUS; the session stays open.
        """
        _arguments.status(status)
        message = _arguments.text(message, _MOST_MESSAGE)
        with self._turn.closing:
            if self._closed:
                return
            self._closed = True
            if status != "finished" and told_to_stop():
                status, message = "preempted", f"{told_to_stop()} told the process to stop"
            try:
                self._close(status or "finished", message)
            finally:
                for callback in self._callbacks:
                    callback()

    def close_left(self, why: str, failure: str | None) -> None:
        """Closes a session that the program has left open: as finished, or as failed if its thread or the process failed."""
        if self._failure or failure:
            self.close("failed", self._failure or failure or "")
        else:
            self.close(None, why)

    def thread_failed(self, thread: int, why: str) -> None:
        """An exception has ended a thread. If it is the one that trained, the run has failed, unless the program closes it."""
        if thread == self._thread:
            self._failure = why

    def on_close(self, callback: Callable[[], None]) -> None:
        """Registers a callback for when the session is closed."""
        self._callbacks.append(callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        failed = _exit.failure_of(error)
        self.close(None if failed is None else "failed", failed or "")

    def _close_leftover(self) -> None:
        """After garbage collection, on another thread."""
        if not _leftovers.ending():
            with contextlib.suppress(MechanicdError):
                self.flush()  # what comes while it lingers can't cost it a step
            if not self._failure:
                _leftovers.linger()
        self.close_left("garbage-collected without close()", _exit.failure() if _leftovers.ending() else None)

    def _say_skipped(self, groups: Sequence[Reductions], skipped: bool) -> None:
        """Logs skipped steps, once for those in a row."""
        if skipped and not self._skipping:
            pairs = zip(self.config.scale_groups, groups, strict=True)
            name, group = next(pair for pair in pairs if not pair[1].is_finite())
            log.warning(
                "%s: the tuner skips step %d, because scale group %s has a NaN or an infinity: %s. "
                "It also skips later steps like this one; the log names only the first in a row [NON_FINITE_REDUCTIONS]",
                self.name or "this run",
                self._state.step + 1,
                name,
                group,
            )
        self._skipping = skipped

    def _check(self) -> None:
        """Raises the error that ended the session, if one did."""
        return  # nothing but close() ends a session without a server

    @abstractmethod
    def _send(self, step: int, groups: Sequence[Reductions], base_lr: float | None, hold: bool) -> bool:
        """Sends a step; returns whether it must be held, as an outage may require."""

    @abstractmethod
    def _receive(self, following: TunerState, wait: bool) -> TunerState:
        """Verifies the answer to the step just sent, now or later; returns the state to continue with."""

    @abstractmethod
    def _close(self, status: str, message: str) -> None:
        """Closes whatever holds the run."""


def only_scale(scales: Sequence[float]) -> float:
    """The one S of a run with one scale group.

    Raises:
        InvalidArgument: SEVERAL_SCALES.
    """
    if len(scales) != 1:
        raise InvalidArgument("SEVERAL_SCALES", f"there are {len(scales)} scale groups, each with its own S; use `scales`")
    return float(scales[0])
