"""The run of a mechanized optimizer; its session opens with the first step, so that a checkpoint can be loaded before."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mechanicd.client import _address, _arguments, _run_name
from mechanicd.client._client import full_name, open_run
from mechanicd.client._errors import InvalidArgument, SessionClosed
from mechanicd.client._local import LocalSession
from mechanicd.client._session import OnOutage, Session, check_outage_policy
from mechanicd.tuner import TunerConfig, TunerState

log = logging.getLogger("mechanicd.client")


@dataclass
class Run:
    """The arguments with which a run's session is opened, and the session once it is open.

    Attributes:
        name: the run's name without its project; may be "" if `target` is None. Its words (see `_run_name`) are filled in
            where there is a target.
        target: the server's address, or None for a tuner in this process.
        start: the tuner's state to open at; None for a new run.
        session: the session, open or closed; the state of a closed one can still be read.
        closed: whether the user closed it. Loading a checkpoint continues the run.
        grown: how many scale groups the run has been given since it began; 0 if it has those that it began with.
        random: what `{random}` in the name stands for; checkpoints keep it. "" for a name without that word.
    """

    name: str
    target: str | None
    project: str | None
    labels: Mapping[str, str] | None
    on_outage: OnOutage
    deadline: float
    spill: "str | os.PathLike[str] | None" = None
    start: TunerState | None = None
    session: Session | None = field(default=None, repr=False)
    closed: bool = False
    grown: int = 0
    random: str = field(default_factory=_run_name.new_random)
    _template: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_outage_policy(self.on_outage)
        self.deadline = _arguments.deadline(self.deadline)
        _arguments.spill(self.spill)
        self.labels = _arguments.labels(self.labels)
        if self.target is not None and not self.name:
            raise InvalidArgument(
                "RUN_NAME_MISSING", f'the server at {self.target!r} needs the run\'s name: pass run="bert/seed0"'
            )
        self._template = self.name
        if not self.has_random:
            self.random = ""  # else equal trainings would have unequal checkpoints
        if self.target is not None:
            _address.parse(self.target)
            self.name = _run_name.filled(self._template, self.random)
            full_name(self.project, self.name)

    @property
    def has_random(self) -> bool:
        """Whether the name has the word `{random}`, so that a resumed training must be told what it was."""
        return _run_name.has_random(self._template)

    @property
    def identity(self) -> tuple[str, str]:
        """The name, and what `{random}` stands for: what all processes of one training share."""
        return self.name, self.random

    def resume_as(self, random: str) -> None:
        """A checkpoint was loaded: `{random}` stands for what it stood for then. "" for a checkpoint that does not know."""
        if random and self.has_random and random != self.random:
            self.random = random
            if self.target is not None:
                self.name = _run_name.filled(self._template, random)

    def share(self, name: str, random: str) -> None:
        """Takes the identity of the process that talks to the server."""
        self.name, self.random = name, random

    @property
    def called(self) -> str:
        """The run's name at the server. There the scale groups of a run are fixed, so one that has been given more goes on
        under a name of its own."""
        return f"{self.name}/{self.grown}-groups" if self.target is not None and self.grown else self.name

    @property
    def state(self) -> TunerState | None:
        """The tuner's state after the last finished step, or None before the first."""
        return self.start if self.session is None else self.session.state

    def open(self, config: TunerConfig) -> Session:
        """The session; opened now if it is not.

        Raises:
            SessionClosed: after `close()`.
            MechanicdError: the server refuses the run, its config or its start.
        """
        if self.closed:
            raise SessionClosed("SESSION_CLOSED", f"{self.name or 'the optimizer'} was closed; load a checkpoint to continue")
        if self.session is None:
            if self.target is None:
                if self.name and os.environ.get("MECHANICD_TARGET"):
                    log.warning(
                        "%s: no target was given, so no server records this run, though MECHANICD_TARGET is set: pass "
                        'target=os.environ["MECHANICD_TARGET"]',
                        self.name,
                    )
                self.session = LocalSession(config, self.start)
            else:
                self.session = self._open_at_server(self.target, config)
        return self.session

    def restart(self, state: TunerState, grown: int = 0) -> None:
        """Continues from a checkpoint: closes the session, if there is one; the next step opens a new one at `state`."""
        session, self.session = self.session, None
        self.start, self.closed, self.grown = state, False, grown
        if session is not None:
            session.close("preempted", f"a checkpoint of step {state.step} was loaded; the run continues from there")

    def grow(self, state: TunerState, groups: int) -> None:
        """Continues with more scale groups: closes the session, if there is one; the next step opens one at `state`."""
        session, self.session = self.session, None
        self.start, self.grown = state, groups
        if session is not None:
            session.close("finished", f"from step {state.step} on with {groups} scale groups, as run {self.called}")
            if self.target is not None:
                log.warning(
                    "%s has %d scale groups now; those of a run are fixed at the server, so it goes on as run %s",
                    session.name,
                    groups,
                    self.called,
                )

    def close(self, status: str | None, message: str) -> None:
        """Closes the session, if there is one; no step can follow.

        Raises:
            InvalidArgument: INVALID_STATUS; nothing has changed.
        """
        _arguments.status(status)
        self.closed = True
        if self.session is not None:
            self.session.close(status, message)

    def _open_at_server(self, target: str, config: TunerConfig) -> Session:
        return open_run(
            target,
            self.called,
            project=self.project,
            config=config,
            labels=self.labels,
            start=self.start if self.start is not None and self.start.step > 0 else 0,
            on_outage=self.on_outage,
            deadline=self.deadline,
            spill=self.spill,
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy of an optimizer has no session yet; its own would open at this one's state."""
        return {**self.__dict__, "start": self.state, "session": None}
