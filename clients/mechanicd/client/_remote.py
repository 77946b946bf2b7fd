"""A session with a server. An outage costs it nothing, because this process's own tuner gives the same bits.

Each step is taken twice: by the server, which keeps the history, and by this process's copy. In an outage the copy continues,
the steps are kept, and a background thread replays them once the server is reachable again (`on_outage="local"`). For the same
reason a step need not wait for its answer: the answer is compared when a later step begins.

`_connection` has the states of an outage, `_opening` how a session begins. Who may do what:

- `_turn` (of `Session`) is held by whoever uses the session: begin, finish, close, and flush while it reads answers. It guards
  `_unanswered` and `_link_of_step`. Most often that is one trainer thread; after SIGTERM it is the thread that closes.
- `_connection.lock` guards what the reconnect thread shares with that user: the connection's state and the backlog.
- `_turn` is taken before `_connection.lock`, never after it, and the reconnect thread never takes `_turn`.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mechanicd.client import _arguments, _close_time, _closing
from mechanicd.client._backlog import Backlog
from mechanicd.client._connection import Connected, Connection, Ended, Refused, verify
from mechanicd.client._deferred import deferred
from mechanicd.client._errors import SURVIVED, AccessDenied, MechanicdError, NotTrusted, ServerUnavailable, SessionClosed
from mechanicd.client._leftovers import do_later
from mechanicd.client._opening import CALL_SECONDS, Opener, Start
from mechanicd.client._session import OnOutage, Session
from mechanicd.client._signals import Turn
from mechanicd.client._targets import Route
from mechanicd.client._transport import Link
from mechanicd.client._wire import config_out
from mechanicd.tuner import Reductions, TunerConfig, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

log = logging.getLogger("mechanicd.client")

_STORE_SECONDS: Final = 0.1
_ATTEMPT_SECONDS: Final = 6.0
"""Of a close's time, for one attempt to flush: a server that waits for a locked store says so after 5 s."""
_IN_FLIGHT: Final = 32
"""The most steps in flight if no step waits for its answer: each step waits for the one 32 before it."""
_MEANWHILE: Final[Mapping[OnOutage, str]] = {
    "local": "continues with its own tuner",
    "hold": "keeps the last S",
    "raise": "stops",
}


def open_session(
    route: Route,
    name: str,
    config: TunerConfig,
    labels: Mapping[str, str],
    start: Start,
    on_outage: OnOutage,
    deadline: float,
    client: str,
    command: str,
    spill: Path | None = None,
) -> "RemoteSession":
    """Opens a run at its server, or without it if the outage policy and `start` allow that.

    Args:
        route: where the run's calls go.
        name: `projects/{project}/runs/{run}`.
        start: where training starts: after a step (0: from scratch), at a checkpoint's tuner state, or None for
            the server's last step.
        on_outage: while the server is unreachable, "local" continues with this process's own tuner and replays the steps
            later; "hold" keeps the last S; "raise" raises ServerUnavailable.
        deadline: seconds that a step waits for its result before the server counts as unreachable.
        client, command: the name of this process and the command that started it, for people who look at the run.
        spill: a folder for the steps of an outage that are too many for the memory; None drops the oldest.

    Raises:
        MechanicdError: what the server refuses. AccessDenied: it does not let this client in. NotTrusted: its certificate is
            not valid. ServerUnavailable if it is unreachable and `on_outage` is "raise", or if only the server knows where to
            start.
    """
    opener = Opener(
        route,
        tuner_service_pb2.OpenSessionRequest(
            name=name, config=config_out(config), labels=dict(labels), client=client, command=command
        ),
    )
    spilled = None
    if spill is not None:
        from mechanicd.client._spill import Spill

        spilled = Spill(spill, opener)
    missed: ServerUnavailable | None = None
    link: Link | None = None
    try:
        opened = opener.open_anywhere(start)
    except ServerUnavailable as error:
        known = TunerState.initial(config) if start == 0 else start
        if on_outage == "raise" or isinstance(error, NotTrusted) or not isinstance(known, TunerState):
            raise
        state, missed = known, error
    else:
        state = TunerState.from_bytes(opened.tuner_state, config)
        link = route.transport.link(route.metadata)
    connection = Connection(opener, Backlog(state, spilled), link, _MEANWHILE[on_outage])
    if missed is not None:
        connection.warn(missed)
    return RemoteSession(name, config, state, connection, on_outage, deadline)


class RemoteSession(Session):
    """One training process's hold on a run of a server. Made by `open_session`."""

    def __init__(
        self,
        name: str,
        config: TunerConfig,
        state: TunerState,
        connection: Connection,
        on_outage: OnOutage,
        deadline: float,
    ) -> None:
        super().__init__(name, config, state)
        self._connection = connection
        self._on_outage = on_outage
        self._deadline = deadline
        self._pid = os.getpid()
        self._link_of_step: Link | None = None
        self._unanswered: deque[tuple[Link, TunerState]] = deque()

    @property
    def connected(self) -> bool:
        """Whether the session is connected."""
        return isinstance(self._connection.state, Connected)

    @property
    def backlog(self) -> int:
        """How many steps the server has not announced durable yet."""
        return len(self._connection.backlog)

    def flush(self, timeout: float | None = None) -> int:
        """Waits until every finished step is durable.

        Args:
            timeout: seconds; None means 5.

        Returns:
            The last durable step.

        Raises:
            ServerUnavailable: not in time; the steps are kept and sent again. STORE_UNAVAILABLE: the server is reachable, but
                its store refuses to write.
            AccessDenied: the server does not let this client in any more; the steps are kept.
            SessionError: the run is no longer this session's.
        """
        seconds = _arguments.timeout(timeout, CALL_SECONDS)
        with deferred, self._turn:
            self._catch_up()
        # Outside the turn: other threads may take steps while this one waits, and a signal may end the wait.
        return self._flush(seconds)

    def _flush(self, timeout: float, insist: bool = False) -> int:
        """As `flush`, outside the turn. To insist is to try again whatever `on_outage` says."""
        end = time.monotonic() + timeout
        refused: MechanicdError | None = None
        opener = self._connection.opener
        while True:
            self._check()
            if not self._connection.wait(max(0.0, end - time.monotonic())):
                raise self._connection.denied or ServerUnavailable(
                    "SERVER_UNREACHABLE",
                    f"{opener.route.transport.target} is unreachable; this process keeps {self.backlog} steps of {self.name}",
                )
            self._check()
            state = self._connection.state
            if isinstance(state, Refused):
                raise state.error
            if isinstance(state, Ended):
                raise SessionClosed("SESSION_CLOSED", f"{self.name} was closed; open the run again")
            try:
                request = tuner_service_pb2.FlushRequest(session=opener.session)
                left = max(0.001, end - time.monotonic())
                reply = opener.call("Flush", request, min(left, _ATTEMPT_SECONDS) if insist else left)
            except (*SURVIVED, SessionClosed) as error:
                # SessionClosed: the server may have restarted since; reconnecting tells whether that is all.
                if isinstance(error, AccessDenied) and not insist:
                    raise
                if error.reason == "STORE_UNAVAILABLE":
                    refused = error
                if time.monotonic() >= end:
                    raise (refused or error) from None
                if refused is error and opener.route.width == 1:
                    time.sleep(min(_STORE_SECONDS, max(0.0, end - time.monotonic())))  # it answers, so it is reachable
                    continue
                if self._on_outage == "raise" and not insist:
                    raise
                if insist:
                    opener.route.renew(error)  # there may be no time for a second try of a dead connection
                self._connection.lose(error)
                continue
            except MechanicdError as error:
                if error.reason == "RUN_DELETED":
                    self._connection.refuse(error)
                raise
            with deferred, self._connection.lock:
                self._connection.backlog.durable(reply.durable_step)
            return int(reply.durable_step)

    def forget(self) -> None:
        """In a forked child: this object is a copy, the session is the parent's. Every use of it raises from now on."""
        self._connection.forget(
            SessionClosed(
                "FORKED_PROCESS",
                f"process {self._pid} holds {self.name}, but this is its forked child {os.getpid()}; train in the parent, or "
                "start the child with multiprocessing's 'spawn' or 'forkserver' and open a run in it",
            )
        )
        self._turn = Turn()  # a thread of the parent may have held it at the fork
        self._link_of_step = None
        self._unanswered.clear()
        self._connection.backlog.forget()
        self._closed = True

    def __del__(self) -> None:
        """A session that nobody closed and nobody can use any more is closed in the background."""
        if not getattr(self, "_closed", True):
            do_later(self._close_leftover)

    # --- a step: always within the turn ------------------------------------------------------------------------------

    def _check(self) -> None:
        self._connection.check()
        state = self._connection.state
        if isinstance(state, Refused) and self._on_outage != "local" and state.error.reason == "RUN_DELETED":
            raise state.error  # this is no outage: there is no server whose S could be waited for

    def _send(self, step: int, groups: Sequence[Reductions], base_lr: float | None, hold: bool) -> bool:
        self._catch_up(_IN_FLIGHT)
        g, x, gg, xx = zip(*groups, strict=True)
        request = tuner_service_pb2.StepRequest(
            step=step,
            reductions=resources_pb2.Reductions(delta_dot_g=g, delta_dot_x=x, g_norm_sq=gg, x_norm_sq=xx),
            base_lr=base_lr,
            hold=hold,
        )
        self._link_of_step = self._connection.send(request, hold_if_disconnected=self._on_outage == "hold")
        return request.hold

    def _receive(self, following: TunerState, wait: bool) -> TunerState:
        link = self._link_of_step
        try:
            if link is not None and (wait or self._on_outage != "local"):
                self._catch_up()
                self._answered(link, following)
            elif link is not None:
                self._unanswered.append((link, following))
            self._check()
        except MechanicdError:
            raise
        except BaseException as stop:  # a second Ctrl-C: nobody waits for the answer any more, but the step was sent
            self._connection.lose(ServerUnavailable("DEADLINE_EXCEEDED", f"{type(stop).__name__} ended the wait"))
            self._state = self._taken(following)
            raise
        return self._taken(following)

    def _taken(self, following: TunerState) -> TunerState:
        # Only now may a replay send the step: it compares the server's S with this one.
        with self._connection.lock:
            self._connection.backlog.complete(following)
        return following

    def _catch_up(self, most: int = 0) -> None:
        """Verifies the answers that steps did not wait for: all that have arrived, and of the others all but `most`."""
        while self._unanswered:
            link, following = self._unanswered[0]
            state = self._connection.state
            current = isinstance(state, Connected) and link is state.link
            if current and len(self._unanswered) <= most and not link.ready:
                return
            self._unanswered.popleft()
            if current:  # a step of a lost link is verified by the replay
                self._answered(link, following)

    def _answered(self, link: Link, following: TunerState) -> None:
        """Waits for the answer to a step; an outage begins if none comes before the deadline."""
        try:
            result = link.receive(self._deadline)
            verify(result, following)
        except SURVIVED as error:
            if self._on_outage == "raise":
                self._connection.end(error)
                raise
            self._connection.lose(error, link)
        except MechanicdError as error:
            if error.reason == "RUN_DELETED":
                self._connection.refuse(error)
                self._check()
                return
            self._connection.end(error)
            raise
        else:
            with self._connection.lock:
                self._connection.backlog.complete(following)
                self._connection.backlog.answered = following.step
                self._connection.backlog.durable(result.durable_step)

    def _close(self, status: str, message: str) -> None:
        connection, error = self._connection, None
        try:
            self._check_at_close()
            until = _close_time.until(self._deadline)
            if not isinstance(connection.state, Ended | Refused):
                error = _closing.close(connection, lambda left: self._flush(left, insist=True), status, message, until)
        except BaseException as stop:  # Ctrl-C: the wait ends, and so does the session
            error = ServerUnavailable("SERVER_UNREACHABLE", f"{type(stop).__name__} ended the wait")
            raise
        finally:
            before = connection.end()
            if isinstance(before, Connected):
                with contextlib.suppress(Exception):
                    before.link.close()
            if isinstance(before, Refused):
                reason = before.error.reason
                log.warning("%s: closed; its last %d steps are in no history [%s]", self.name, self.backlog, reason)
            elif error is not None and not isinstance(before, Ended):
                log.warning("%s", _closing.unclosed(connection, status, error, self._keep(status, message)))
            elif not isinstance(before, Ended):
                connection.backlog.clear_spill()

    def _check_at_close(self) -> None:
        """Verifies the last answers. An error that nobody was told of yet ends the session, and is logged."""
        ended = isinstance(self._connection.state, Ended)
        self._connection.prepare_close()
        try:
            self._catch_up()
        except SURVIVED:  # on_outage="raise"
            self._connection.prepare_close()
        except MechanicdError as error:
            if not ended:
                log.error("%s: the server refused its last steps: %s", self.name, str(error))

    def _keep(self, status: str, message: str) -> str:
        """Leaves what the server lacks on the disk. Returns how the log says so; "" without a spill."""
        with self._connection.lock:
            kept = self._connection.backlog.keep(status, message)
        return f". They are in {kept}: bring them with `mechanicd import {kept}`" if kept else ""
