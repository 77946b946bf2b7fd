"""Opening a session at a server: the request, which servers to try, and what the answer says."""

import logging
import secrets
from typing import Any, Final

from mechanicd.client._errors import NotImplementedByServer, ServerUnavailable, said
from mechanicd.client._targets import Route
from mechanicd.tuner import TunerState
from mechanicd.v1 import tuner_service_pb2

log = logging.getLogger("mechanicd.client")

CALL_SECONDS: Final = 5.0
"""Timeout of a unary call, and of one result of a replay."""

Start = int | TunerState | None
"""Where training starts: after a step (0: from scratch), at a checkpoint's state, or None: at the server's last step."""


class Opener:
    """Sends OpenSession, first for a new session and later to reconnect.

    Attributes:
        name: `projects/{project}/runs/{run}`.
        route: where the run's calls go.
        session: the session's id; 0 before the server has given one.
        begun: whether the training has begun. From then on, an answer of something that is no mechanicd is an outage.
    """

    def __init__(self, route: Route, request: tuner_service_pb2.OpenSessionRequest) -> None:
        self.name: str = request.name
        self.route = route
        self.session = 0
        self.begun = False
        self._request = request
        # By these, the server knows a repeated or late call for one of this trainer's own.
        self._request.trainer = secrets.randbits(62) + 1

    def open_anywhere(self, start: Start) -> tuner_service_pb2.OpenSessionResponse:
        """Opens a new session at the first server that answers.

        Raises:
            MechanicdError: what the server refuses; ServerUnavailable of the last server if none answers.
        """
        for _ in range(self.route.width - 1):
            try:
                return self.open(start)
            except ServerUnavailable:
                self.route.advance()
        return self.open(start)

    def open(self, start: Start, session: int = 0) -> tuner_service_pb2.OpenSessionResponse:
        """Opens a new session at the current server, or resumes the one whose id is given.

        Raises:
            MechanicdError: what the server refuses, or ServerUnavailable.
        """
        self._request.attempt += 1
        request = self.request(start, session)
        opened: tuner_service_pb2.OpenSessionResponse = self.call("OpenSession", request, CALL_SECONDS)
        self.session = opened.session
        # A rewind to a checkpoint is expected. A rewind to step 0 (a new training under an old name) and a server that lacks
        # steps (it adopts the client's state) may be a surprise.
        expected = opened.outcome == tuner_service_pb2.OPEN_OUTCOME_REWOUND and start != 0
        surprising = opened.outcome in (tuner_service_pb2.OPEN_OUTCOME_REWOUND, tuner_service_pb2.OPEN_OUTCOME_ADOPTED)
        log.log(logging.WARNING if surprising and not expected else logging.INFO, "%s: %s", self.name, said(opened.explanation))
        return opened

    def request(self, start: Start, session: int) -> tuner_service_pb2.OpenSessionRequest:
        """The request that `open` sends."""
        request = tuner_service_pb2.OpenSessionRequest()
        request.CopyFrom(self._request)
        request.session = session
        if isinstance(start, TunerState):
            request.tuner_state = start.to_bytes()
        elif start is not None:
            request.after_step = start
        return request

    def call(self, method: str, request: Any, timeout: float) -> Any:
        """One unary call to the current server.

        Raises:
            MechanicdError: what the server refuses, or ServerUnavailable.
        """
        try:
            return self.route.transport.call(method, request, timeout, self.route.metadata)
        except NotImplementedByServer as error:
            if not self.begun:
                raise
            raise ServerUnavailable("RPC_FAILED", error.message) from None
