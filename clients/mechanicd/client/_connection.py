"""A session's connection: connected, disconnected or ended; and the thread that reconnects and replays the backlog.

    Connected ──── no answer in time, stream ended, OWNERSHIP_LOST ────▶ Disconnected
        ▲              UNAUTHENTICATED, PERMISSION_DENIED                     │ backoff with full jitter, the next target
        └── the session resumed, or opened at the backlog's anchor; ◀─────────┘
            the backlog sent in order, each S compared bit for bit
    Connected, Disconnected ── the server refuses the run (RUN_DELETED …) ──▶ Refused
    Connected, Disconnected, Refused ── SESSION_FENCED, STEP_CONFLICT, another S, close() ──▶ Ended
    Ended by an outage (on_outage="raise") ── close() ──▶ Disconnected

Two threads meet here: the trainer's, and one reconnect thread for each outage. `lock` guards the state and the backlog, and it
is held only for moments, never during a call. The rule that no step is lost or sent twice rests on it:

- The trainer appends a step to the backlog and puts it on the link in one hold of the lock (`send`).
- The reconnect thread becomes `Connected` in the same hold of the lock in which it finds the whole backlog replayed
  (`_replay`).

So each step is either in the backlog before the switch, and the replay sends it, or it goes out on the new link after it.
The trainer waits for the reconnect thread only in `flush` and `close`, outside the lock.
"""

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Final

from mechanicd.client._backlog import Backlog, Taken
from mechanicd.client._deferred import deferred
from mechanicd.client._errors import (
    SURVIVED,
    AccessDenied,
    MechanicdError,
    NotTrusted,
    ServerUnavailable,
    SessionClosed,
    SessionFenced,
    StepConflict,
)
from mechanicd.client._opening import CALL_SECONDS, Opener
from mechanicd.client._transport import Link, step_error
from mechanicd.v1 import tuner_service_pb2

log = logging.getLogger("mechanicd.client")

_BACKOFF_FIRST: Final = 0.1
_BACKOFF_MOST: Final = 5.0
_REPLAY_BATCH: Final = 256
_LOOK_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Connected:
    """The server takes steps as they come."""

    link: Link


@dataclass(frozen=True, slots=True, eq=False)
class Disconnected:
    """The server is unreachable: steps wait in the backlog, and a thread tries to reconnect."""


@dataclass(frozen=True, slots=True, eq=False)
class Refused:
    """The server takes no more steps of this run, and trying again would not help: training goes on without a record.

    Attributes:
        error: what the server said.
    """

    error: MechanicdError


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """No step follows.

    Attributes:
        error: what ended the session, raised by each later use; None if it was closed.
    """

    error: MechanicdError | None


State = Connected | Disconnected | Refused | Ended


class Connection:
    """The state of a session's connection, and every change of it.

    Args:
        opener: of the session, opened already if `link` is given.
        backlog: the steps that are not durable yet.
        link: the open stream of steps, or None to start disconnected.
        meanwhile: what the training does in an outage, for the log.

    Attributes:
        lock: guards `state` and `backlog`; reentrant, as a signal handler may flush or close in the middle of a step.
    """

    def __init__(self, opener: Opener, backlog: Backlog, link: Link | None, meanwhile: str) -> None:
        self.opener = opener
        opener.begun = True
        self.backlog = backlog
        self.lock = threading.RLock()
        self._denied: AccessDenied | None = None
        self._meanwhile = meanwhile
        self._settled = threading.Event()  # set while connected, and once ended: what `wait` waits for
        self._over = threading.Event()  # set once ended: what the reconnect thread's backoff waits for
        self._state: State
        self._enter(Disconnected() if link is None else Connected(link))

    @property
    def state(self) -> State:
        """The state now; another thread may change it at any time unless the lock is held."""
        return self._state

    @property
    def denied(self) -> AccessDenied | None:
        """Why this client may not reconnect, where that is what stands in the way."""
        return None if self._denied is None else _alone(self._denied)

    def check(self) -> None:
        """Raises what ended the session, if an error did."""
        if isinstance(self._state, Ended) and self._state.error is not None:
            raise self._state.error

    def wait(self, timeout: float) -> bool:
        """Waits while the server is unreachable. Returns False if it still is when the time is up."""
        end = time.monotonic() + timeout
        while not self._settled.is_set():  # a signal amid `Event.wait` could leave the event's lock taken for ever
            if time.monotonic() >= end:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def send(self, request: tuner_service_pb2.StepRequest, *, hold_if_disconnected: bool) -> Link | None:
        """Adds a step to the backlog and, if connected, sends it. Returns the link that will answer, or None."""
        with self.lock:
            link = self._state.link if isinstance(self._state, Connected) else None
            if link is None and hold_if_disconnected:
                request.hold = True
            request.session = self.opener.session
            self.backlog.append(request)
            if link is not None:
                link.send(request)
            return link

    def lose(self, error: MechanicdError, link: Link | None = None) -> None:
        """The server does not answer: from now on steps wait, and a thread tries to reconnect.

        Args:
            link: where the answer was missed. If it is not the current one, nothing changes: an old link's late failure says
                nothing about the new one.
        """
        with deferred:
            with self.lock:
                if not isinstance(self._state, Connected) or link not in (None, self._state.link):
                    return
                lost = self._state.link
                self._denied = _alone(error)
                self._enter(Disconnected())
            lost.close()
        self.warn(error)

    def refuse(self, error: MechanicdError) -> None:
        """The server refuses the run: training goes on, and this is logged once."""
        with deferred:
            with self.lock:
                before = self._state
                if isinstance(before, (Refused, Ended)):
                    return
                self._enter(Refused(error))
            if isinstance(before, Connected):
                before.link.close()
        log.error(
            "%s: the server refuses the run; training continues, but the server records no further steps: %s [%s]",
            self.opener.name,
            error.message,
            error.reason,
        )

    def warn(self, error: MechanicdError) -> None:
        """Logs that an outage begins."""
        # Its text alone: a log that keeps its records would keep the frames of the error, and in them the session.
        what = "refuses this client" if isinstance(error, AccessDenied) else "is unreachable"
        log.warning("%s: the server %s; training %s: %s", self.opener.name, what, self._meanwhile, str(error))

    def end(self, error: MechanicdError | None = None) -> State:
        """Ends the session; only the first end counts. Closes the link after an error; else it is the caller's to close.

        Returns:
            The state before.
        """
        with deferred:
            with self.lock:
                before = self._state
                if isinstance(before, Ended):
                    return before
                self._enter(Ended(error))
            if error is not None and isinstance(before, Connected):
                before.link.close()
            return before

    def prepare_close(self) -> None:
        """No step follows: a step that was never finished is dropped, as a replay would wait for it. A session that ended for
        an outage alone reconnects, because what it has done so far must still be recorded."""
        with deferred, self.lock:
            self.backlog.drop_unfinished()
            if isinstance(self._state, Ended) and isinstance(self._state.error, SURVIVED):
                self._over.clear()
                self._enter(Disconnected())

    def forget(self, error: MechanicdError) -> None:
        """In a forked child: the link, its threads and the reconnect thread are the parent's. Every use raises `error`."""
        # The parent's threads may have held these at the fork, and nobody in the child would ever release them.
        self.lock, self._settled, self._over = threading.RLock(), threading.Event(), threading.Event()
        self._enter(Ended(error))

    def _enter(self, state: State) -> None:
        """The only place that changes the state. Called with the lock held, or before any other thread knows this object."""
        self._state = state
        if isinstance(state, Connected):
            self._denied = None
        if isinstance(state, Disconnected):
            self._settled.clear()
            # Each outage has a thread of its own. One that has reconnected may not have returned yet when the next begins.
            threading.Thread(target=self._reconnect, name="mechanicd-reconnect", daemon=True).start()
            return
        if isinstance(state, Ended):
            self._over.set()
        self._settled.set()

    # --- the reconnect thread ----------------------------------------------------------------------------------------

    def _reconnect(self) -> None:
        attempt, told = 0, {self._denied.reason} if self._denied else set[str]()
        while not self._over.wait(random.uniform(0.0, min(_BACKOFF_MOST, _BACKOFF_FIRST * 2**attempt))):
            attempt = min(attempt + 1, 10)
            try:
                self.opener.route.advance()
                last_step = self._reopen()
                replayed = self._replay(self.opener.route.transport.link(self.opener.route.metadata), last_step)
            except SURVIVED as error:
                self._denied = _alone(error)
                if isinstance(error, (NotTrusted, AccessDenied)) and error.reason not in told:
                    told.add(error.reason)
                    log.error("%s: %s", self.opener.name, str(error))
                self.opener.route.renew(error)
                continue
            except MechanicdError as error:
                if isinstance(error, SessionFenced):
                    self.end(error)
                self.refuse(error)
                return
            if replayed is not None:
                log.warning("%s: reconnected; the server took the %d steps that were waiting", self.opener.name, replayed)
            return

    def _reopen(self) -> int:
        """Opens the session again. Returns the last step that the server has of it."""
        with self.lock:
            anchor = self.backlog.anchor
        if self.opener.session:
            try:
                last_step = int(self.opener.open(None, session=self.opener.session).last_step)
            except SessionClosed:
                pass  # this server has never heard of the session: its store was lost, or it is another one
            else:
                if last_step >= anchor.step:
                    return last_step
        # The server lacks steps that are no longer in the backlog, so it has to adopt the state after them.
        return int(self.opener.open(anchor if anchor.step else 0).last_step)

    def _replay(self, link: Link, last_step: int) -> int | None:
        """Sends the steps above `last_step` in order, while the trainer makes more, and becomes connected by this link.

        Returns:
            How many steps were sent; None if the session ended meanwhile.
        """
        replayed = 0
        try:
            while not self._over.is_set():
                with self.lock:
                    entries = self.backlog.after(last_step, _REPLAY_BATCH)
                    if not entries and self.backlog.last_step <= last_step:
                        if isinstance(self._state, Ended):
                            break
                        self._enter(Connected(link))  # in the same hold of the lock as the check of the backlog
                        return replayed
                if not entries:
                    time.sleep(0.0005)  # the trainer is between begin and finish: that step has no S to compare with yet
                    continue
                for request, _ in entries:
                    request.session = self.opener.session
                link.send(*[request for request, _ in entries])
                for _, state in entries:
                    result = link.receive(CALL_SECONDS)
                    assert state is not None  # `after` gives complete entries
                    verify(result, state)
                    last_step = state.step
                    with self.lock:
                        self.backlog.answered = last_step
                        self.backlog.durable(min(result.durable_step, last_step))
                replayed += len(entries)
        except SURVIVED:
            link.close()
            raise
        except MechanicdError as error:  # a step was refused, or has another S
            link.close()
            if error.reason != "RUN_DELETED":
                self.end(error)
            raise
        link.close()
        return None


def _alone(error: MechanicdError) -> AccessDenied | None:
    """An error that denies access, without the frames in which it was raised; None for any other."""
    return type(error)(error.reason, error.message, error.metadata) if isinstance(error, AccessDenied) else None


def verify(result: tuner_service_pb2.StepResult, following: Taken) -> None:
    """Compares the server's answer with the tuner of this process.

    Raises:
        ServerUnavailable: the server restarted, closed the session, or lost the run to another; reconnecting tells which.
        MechanicdError: what the server refused; StepConflict, SCALE_MISMATCH, if its S is not this process's bit for bit.
    """
    if result.HasField("error"):
        error = step_error(result.error)
        if error.reason in ("SESSION_UNKNOWN", "OWNERSHIP_LOST", "STORE_UNAVAILABLE"):
            raise ServerUnavailable(error.reason, error.message, error.metadata)
        raise error
    if result.step != following.step or tuple(result.scale) != following.scale:
        raise StepConflict(
            "SCALE_MISMATCH",
            f"at step {following.step} the server computes S = {list(result.scale)[:3]} (step {result.step}), but this process "
            f"computes {list(following.scale[:3])}; they must be equal bit for bit. Check that both run the same mechanicd",
        )
