"""A session whose tuner is the server's, and what becomes of it when the server is away.

Each step is taken twice: by the server, which keeps the history, and by this process's own copy, which gives the same bits.
So an outage costs nothing but the history: the copy goes on, the steps are kept, and a background thread brings them to the
server when it is back (`on_outage="local"`). For the same reason a step need not wait for its answer: it is compared while the
next one begins.
"""

import contextlib
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mechanicd.client._backlog import Backlog
from mechanicd.client._errors import (
    InvalidArgument,
    MechanicdError,
    ServerUnavailable,
    SessionClosed,
    SessionFenced,
    StepConflict,
)
from mechanicd.client._session import ON_OUTAGE, OnOutage, Session
from mechanicd.client._signals import Turn
from mechanicd.client._targets import Route
from mechanicd.client._transport import Link, step_error
from mechanicd.tuner import Reductions, TunerConfig, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

log = logging.getLogger("mechanicd.client")

_CALL_SECONDS: Final = 5.0
_LAST_SECONDS: Final = 10.0
_STORE_SECONDS: Final = 0.1
_BACKOFF_FIRST: Final = 0.1
_BACKOFF_MOST: Final = 5.0
_REPLAY_BATCH: Final = 256
_PIPELINED: Final = 32
"""Steps that may be on their way at once where none waits for its answer; those that take longer than the way are one."""
_STATUS: Final = {
    "finished": resources_pb2.RUN_STATUS_FINISHED,
    "failed": resources_pb2.RUN_STATUS_FAILED,
    "preempted": resources_pb2.RUN_STATUS_PREEMPTED,
}

Start = int | TunerState | None


class RemoteSession(Session):
    """One training process's hold on a run of a server. Made by `Client.open_run`.

    Args:
        route: where the run's calls go.
        name: `projects/{project}/runs/{run}`.
        start: where the training is: a step (0 for one that begins anew), a checkpoint's tuner state, or None for
            wherever the server's run is.
        on_outage: "local" goes on with this process's own tuner and brings the steps to the server later; "hold" keeps the
            last S meanwhile; "raise" raises ServerUnavailable.
        deadline: seconds that a step waits for its result before the server counts as away.
        client, command: who this is and how it was started, for people who look at the run.

    Raises:
        MechanicdError: what the server refuses. ServerUnavailable if it is away and `on_outage` is "raise", or if only
            the server knows where to start.
    """

    def __init__(
        self,
        route: Route,
        name: str,
        config: TunerConfig,
        labels: Mapping[str, str],
        start: Start,
        on_outage: OnOutage,
        deadline: float,
        client: str,
        command: str,
    ) -> None:
        if on_outage not in ON_OUTAGE:
            raise InvalidArgument("INVALID_OUTAGE_POLICY", f"on_outage={on_outage!r}; choose one of {', '.join(ON_OUTAGE)}")
        self._route = route
        self._on_outage = on_outage
        self._deadline = deadline
        self._pid = os.getpid()
        self._open_request = tuner_service_pb2.OpenSessionRequest(
            name=name, config=_config_out(config), labels=dict(labels), client=client, command=command
        )
        self._lock = threading.RLock()  # a handler of the program's own may flush or close amid a step
        self._link: Link | None = None
        self._link_of_step: Link | None = None
        self._unanswered: deque[tuple[Link, TunerState]] = deque()
        self._id = 0
        self._ended = threading.Event()
        self._back = threading.Event()
        self._returning: threading.Thread | None = None
        try:
            opened = self._open_somewhere(start)
        except ServerUnavailable as error:
            state = TunerState.initial(config) if start == 0 else start
            if on_outage == "raise" or not isinstance(state, TunerState):
                raise
            super().__init__(name, config, state)
            self._backlog = Backlog(state)
            self._away(error)
            return
        state = TunerState.from_bytes(opened.tuner_state, config)
        super().__init__(name, config, state)
        self._backlog = Backlog(state)
        self._link = route.transport.link(route.metadata)

    @property
    def connected(self) -> bool:
        """Whether the server takes the steps as they come."""
        return self._link is not None

    @property
    def backlog(self) -> int:
        """How many steps wait to be announced durable by the server."""
        return len(self._backlog)

    def flush(self, timeout: float | None = None) -> int:
        """Waits until every finished step is durable.

        Args:
            timeout: seconds; None means 5.

        Returns:
            The last durable step.

        Raises:
            ServerUnavailable: not in time; the steps are kept and sent again. STORE_UNAVAILABLE: the server is there, and
                its store refuses to write.
            SessionError: the run is no longer this session's.
        """
        with self._turn:
            self._catch_up()
        return self._flush(_CALL_SECONDS if timeout is None else timeout)

    def _flush(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        refused: MechanicdError | None = None
        while True:
            self._check()
            left = end - time.monotonic()
            if self._link is None and not self._back.wait(max(0.0, left)):
                raise ServerUnavailable(
                    "SERVER_UNREACHABLE",
                    f"{self._route.transport.target} is away; {self.backlog} steps of {self.name} are kept here",
                )
            self._check()
            try:
                request = tuner_service_pb2.FlushRequest(session=self._id)
                reply = self._call("Flush", request, max(0.001, end - time.monotonic()))
            except (ServerUnavailable, SessionClosed) as error:
                # SessionClosed: the server restarted in between; coming back tells whether it was more than that.
                if error.reason == "STORE_UNAVAILABLE":
                    refused = error
                if time.monotonic() >= end:
                    raise (refused or error) from None
                if refused is error and self._route.width == 1:
                    time.sleep(min(_STORE_SECONDS, max(0.0, end - time.monotonic())))  # it answers, so it is not away
                    continue
                if self._on_outage == "raise":
                    raise
                self._away(error)
                continue
            with self._lock:
                self._backlog.durable(reply.durable_step)
            return int(reply.durable_step)

    def forget(self) -> None:
        """In a forked child: this object is a copy, the session is the parent's. Every use of it raises from now on."""
        self._fatal = SessionClosed(
            "FORKED_PROCESS",
            f"{self.name} is held by process {self._pid}, this is its forked child {os.getpid()}; "
            "train in the parent, or start the child by multiprocessing's 'spawn' or 'forkserver' and open a run in it",
        )
        self._lock, self._turn = threading.RLock(), Turn()  # the parent may have held them at the fork
        self._link = self._link_of_step = None
        self._unanswered.clear()
        self._closed = True

    # --- a step ------------------------------------------------------------------------------------------------------

    def _send(self, step: int, groups: Sequence[Reductions], base_lr: float | None, hold: bool) -> bool:
        self._catch_up(_PIPELINED)
        g, x, gg, xx = zip(*groups, strict=True)
        with self._lock:
            link = self._link
            hold = hold or (link is None and self._on_outage == "hold")
            request = tuner_service_pb2.StepRequest(
                session=self._id,
                step=step,
                reductions=resources_pb2.Reductions(delta_dot_g=g, delta_dot_x=x, g_norm_sq=gg, x_norm_sq=xx),
                base_lr=base_lr,
                hold=hold,
            )
            self._backlog.append(request)
            if link is not None:
                link.send(request)
            self._link_of_step = link
        return hold

    def _receive(self, following: TunerState, wait: bool) -> TunerState:
        link = self._link_of_step
        if link is not None and (wait or self._on_outage != "local"):
            self._catch_up()
            self._answered(link, following)
        elif link is not None:
            self._unanswered.append((link, following))
        self._check()
        with self._lock:
            self._backlog.complete(following)
        return following

    def _catch_up(self, most: int = 0) -> None:
        """Looks at the answers that steps did not wait for: those that are there, and of the others all but `most`."""
        while self._unanswered:
            link, following = self._unanswered[0]
            if link is self._link and len(self._unanswered) <= most and not link.ready:
                return
            self._unanswered.popleft()
            if link is self._link:  # else the replay looks at it
                self._answered(link, following)

    def _answered(self, link: Link, following: TunerState) -> None:
        """Waits for the answer to a step; an outage begins where none comes in time."""
        try:
            result = link.receive(self._deadline)
            self._verify(result, following)
        except ServerUnavailable as error:
            if self._on_outage == "raise":
                self._fatal = error
                raise
            self._away(error)
        else:
            with self._lock:
                self._backlog.complete(following)
                self._backlog.durable(result.durable_step)

    def _verify(self, result: tuner_service_pb2.StepResult, following: TunerState) -> None:
        """Raises what the server refused, and StepConflict where its S is not this process's bit for bit."""
        if result.HasField("error"):
            error = step_error(result.error)
            if error.reason in ("SESSION_UNKNOWN", "OWNERSHIP_LOST", "STORE_UNAVAILABLE"):
                # The server restarted, closed the session, or lost the run to another; coming back tells which.
                raise ServerUnavailable(error.reason, error.message, error.metadata)
            self._fatal = error
            raise error
        if result.step != following.step or tuple(result.scale) != following.scale:
            self._fatal = StepConflict(
                "SCALE_MISMATCH",
                f"at step {following.step} the server computes S = {list(result.scale)[:3]} (step {result.step}), this process "
                f"{list(following.scale[:3])}; they must be equal bit for bit: do the versions of mechanicd differ?",
            )
            raise self._fatal

    # --- an outage ---------------------------------------------------------------------------------------------------

    def _call(self, method: str, request: Any, timeout: float) -> Any:
        return self._route.transport.call(method, request, timeout, self._route.metadata)

    def _open_somewhere(self, start: Start) -> tuner_service_pb2.OpenSessionResponse:
        """Opens the session at the first server that is there."""
        for _ in range(self._route.width - 1):
            try:
                return self._open(start)
            except ServerUnavailable:
                self._route.advance()
        return self._open(start)

    def _open(self, start: Start, session: int = 0) -> tuner_service_pb2.OpenSessionResponse:
        request = tuner_service_pb2.OpenSessionRequest()
        request.CopyFrom(self._open_request)
        request.session = session
        if isinstance(start, TunerState):
            request.tuner_state = start.to_bytes()
        elif start is not None:
            request.after_step = start
        opened: tuner_service_pb2.OpenSessionResponse = self._call("OpenSession", request, _CALL_SECONDS)
        self._id = opened.session
        # A checkpoint is expected to be older than the server; a training that begins anew under an old name, or a server that
        # lacks steps, may surprise.
        expected = opened.outcome == tuner_service_pb2.OPEN_OUTCOME_REWOUND and start != 0
        surprising = opened.outcome in (tuner_service_pb2.OPEN_OUTCOME_REWOUND, tuner_service_pb2.OPEN_OUTCOME_ADOPTED)
        log.log(logging.WARNING if surprising and not expected else logging.INFO, "%s: %s", request.name, opened.explanation)
        return opened

    def _away(self, error: MechanicdError) -> None:
        """The server is away: from now on the steps wait, and a thread tries to bring them."""
        with self._lock:
            link, self._link = self._link, None
            self._back.clear()
        if link is not None:
            link.close()
        does = "keeps S" if self._on_outage == "hold" else "goes on with its own tuner"
        log.warning("%s: the server is away, the training %s: %s", self.name, does, error)
        if self._returning is None or not self._returning.is_alive():
            self._returning = threading.Thread(target=self._come_back, name="mechanicd-come-back", daemon=True)
            self._returning.start()

    def _come_back(self) -> None:
        attempt = 0
        while not self._ended.wait(random.uniform(0.0, min(_BACKOFF_MOST, _BACKOFF_FIRST * 2**attempt))):
            attempt = min(attempt + 1, 10)
            self._route.advance()
            link: Link | None = None
            try:
                last_step = self._reopen()
                link = self._route.transport.link(self._route.metadata)
                replayed = self._replay(link, last_step)
            except ServerUnavailable:
                pass
            except MechanicdError as error:
                self._give_up(error)
                return
            else:
                log.warning("%s: the server is back, it has taken %d steps that waited", self.name, replayed)
                return
            if link is not None:
                link.close()

    def _reopen(self) -> int:
        """Opens the session again; the last step that the server has for it."""
        with self._lock:
            anchor = self._backlog.anchor
        if self._id:
            try:
                last_step = int(self._open(None, session=self._id).last_step)
            except SessionClosed:  # this server knows nothing of the session
                pass
            else:
                if last_step >= anchor.step:
                    return last_step
        opened = self._open(anchor if anchor.step else 0)
        return int(opened.last_step)

    def _replay(self, link: Link, last_step: int) -> int:
        """Brings the steps above `last_step` to the server, in order, while the training makes more."""
        replayed = 0
        while True:
            with self._lock:
                entries = self._backlog.after(last_step)[:_REPLAY_BATCH]
                if not entries and self._backlog.last_step <= last_step:
                    self._link = link
                    self._back.set()
                    return replayed
            if not entries:
                time.sleep(0.0005)  # a step is between begin and finish
                continue
            for request, _ in entries:
                request.session = self._id
            link.send(*[request for request, _ in entries])
            for _, state in entries:
                result = link.receive(_CALL_SECONDS)
                assert state is not None  # `after` gives complete entries
                self._verify(result, state)
                last_step = state.step
                with self._lock:
                    self._backlog.durable(min(result.durable_step, last_step))
            replayed += len(entries)

    def _give_up(self, error: MechanicdError) -> None:
        if isinstance(error, SessionFenced):
            self._fatal = error
        if self._fatal is not None:
            self._back.set()  # whoever waits sees the error
        else:
            log.error("%s: the server does not take the run back, the training goes on without it: %s", self.name, error)

    def _close(self, status: str, message: str) -> None:
        if status not in _STATUS:
            raise InvalidArgument("INVALID_STATUS", f"status={status!r}; choose one of {', '.join(_STATUS)}")
        if self._fatal is None:
            # An outage at the end: what waits has no other place to go than here, so the server gets a while to come back.
            with contextlib.suppress(MechanicdError):
                self._catch_up()
                self._flush(self._deadline if self._link is not None else max(self._deadline, _LAST_SECONDS))
        self._ended.set()
        link, self._link = self._link, None
        try:
            if self._fatal is None and link is not None:
                request = tuner_service_pb2.CloseSessionRequest(session=self._id, status=_STATUS[status], message=message)
                self._call("CloseSession", request, _CALL_SECONDS)
            elif self._fatal is None:
                log.warning("%s: closed while the server is away; it misses the last %d steps", self.name, self.backlog)
        except MechanicdError as error:
            log.warning("%s: could not be closed as %s: %s", self.name, status, error)
        finally:
            if link is not None:
                with contextlib.suppress(Exception):
                    link.close()


def _config_out(config: TunerConfig) -> Any:
    return resources_pb2.TunerConfig(
        convention=f"CONVENTION_{config.convention.upper()}",
        betas=config.betas,
        s_decay=config.s_decay,
        s_init=config.s_init,
        eps=config.eps,
        initial_wealth=config.initial_wealth,
        scale_groups=config.scale_groups,
    )
