"""Which session holds which run on this server, and what a session that holds none is answered.

The registry is a cache: the run's row in the store is the truth. Memory is bounded by the runs that are held now, plus the
newest `REMEMBERED` sessions that lost theirs; about older ones the store is asked (`Engine.explain`).
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from typing import Final

from mechanicd.service._active_run import ActiveRun
from mechanicd.service._errors import ServiceError
from mechanicd.service._metrics import Metrics
from mechanicd.store import OwnershipLost
from mechanicd.v1 import names

log = logging.getLogger("mechanicd.service")

REMEMBERED: Final = 10_000
"""How many sessions that lost their run are answered from memory."""


class Unrecognized(ServiceError):
    """SESSION_UNKNOWN, but only as far as memory goes: the store may know who holds the session's run now."""


class Registry:
    """The runs that this server holds. Use it inside one event loop.

    Two names lead to a held run: its session and its run name. At most one session holds a run, so both change together
    (`hold`, `release`).

    Args:
        metrics: where lost runs are counted.

    Attributes:
        by_session: the runs by the session that holds them. Public for the hot path, which reads it once per step; it may
            contain a run that is being fenced (`ActiveRun.fenced_by`), whose steps must be refused.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.by_session: dict[int, ActiveRun] = {}
        self._by_name: dict[names.RunName, ActiveRun] = {}
        self._metrics = metrics
        # Session → its successor, or 0 where another server took the run over together with its session. Oldest first.
        self._former: OrderedDict[int, int] = OrderedDict()
        self._turns: dict[names.RunName, _Turn] = {}

    def __len__(self) -> int:
        return len(self.by_session)

    # --- who holds a run ---------------------------------------------------------------------------------------------

    def get(self, session: int) -> ActiveRun:
        """The run that a session holds.

        Raises:
            ServiceError: SESSION_FENCED, OWNERSHIP_LOST, or `Unrecognized`.
        """
        run = self.by_session.get(session)
        if run is None or run.fenced_by:
            raise self.refusal(session)
        return run

    def named(self, name: names.RunName) -> ActiveRun | None:
        """The run of this name, if a session holds it here; it may be fenced already."""
        return self._by_name.get(name)

    def hold(self, name: names.RunName, run: ActiveRun) -> None:
        """The run's session holds it here from now on. Call it after the store has said so."""
        self._former.pop(run.row.session, None)  # it may be back from another server
        self._by_name[name] = run
        self.by_session[run.row.session] = run

    def release(self, name: names.RunName) -> None:
        """No session holds the run any more: it was closed or deleted. Its session is unknown from now on."""
        run = self._by_name.get(name)
        if run is not None:
            self._drop(run)

    def lost(self, run: ActiveRun) -> None:
        """Another server took the run over: a commit or a claim found an epoch in its row that is not ours."""
        if self.by_session.get(run.row.session) is not run:
            return  # it was closed or deleted here
        log.warning("projects/%s/runs/%s: another server took it over", run.row.project, run.row.run)
        self._metrics.lost += 1
        self._drop(run)
        self._remember(run.row.session, 0)

    @contextlib.contextmanager
    def fencing(self, name: names.RunName, successor: int) -> Iterator[ActiveRun | None]:
        """Refuses the session that holds the run here, while the body gives the run to `successor` in the store.

        Only the body's success makes the fence permanent. If the store fails, the old session keeps the run and goes on;
        its steps were refused as fenced only where the store had to decide at that moment. The caller holds `lock(name)`,
        so there is one fence at a time.

        Yields:
            The run that is fenced, or None where no session holds it here.
        """
        run = self._by_name.get(name)
        if run is None:
            yield None
            return
        # From this line on `Engine.step` takes no step of the old session, so the body's flush gets all that were answered.
        run.fenced_by = successor
        try:
            yield run
        except OwnershipLost:
            self.lost(run)
            raise
        except BaseException:
            run.fenced_by = 0
            raise
        self._drop(run)
        self._remember(run.row.session, successor)

    @contextlib.asynccontextmanager
    async def lock(self, name: names.RunName) -> AsyncIterator[None]:
        """A lock per run name, for whoever changes who holds the run on this server. It lives only while somebody wants it.

        Other servers are not locked out: they are kept apart by the epoch in the run's row.
        """
        turn = self._turns.setdefault(name, _Turn())
        # Counted before the wait, so a turn that somebody waits for is never replaced by a second one of the same name.
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[name]

    # --- what the others are answered ----------------------------------------------------------------------------------

    def refusal(self, session: int) -> ServiceError:
        """Why a session holds no run here."""
        run = self.by_session.get(session)
        successor = self._former.get(session) if run is None else run.fenced_by
        if successor is None:
            return unknown(session, Unrecognized)
        if successor:
            return fenced(session, successor)
        return ServiceError(
            "OWNERSHIP_LOST",
            "another server took over this run and its session; open the session again, here or elsewhere",
            {"session": session},
        )

    def fenced(self, session: int, successor: int) -> ServiceError:
        """The store says that a newer session took the run: `successor`, or 0 if that one closed it since.

        A fenced session never gets its run back, so the answer is remembered.
        """
        if successor and session not in self.by_session:
            self._remember(session, successor)
        return fenced(session, successor)

    def deleted(self, session: int) -> ServiceError:
        """The store does not know the session: its run was deleted, or there never was one."""
        if not self._former.get(session):  # one that was fenced before must still be told to stop
            self._former.pop(session, None)
        return self.refusal(session)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _drop(self, run: ActiveRun) -> None:
        self.by_session.pop(run.row.session, None)
        name = names.RunName(run.row.project, run.row.run)
        if self._by_name.get(name) is run:  # a successor may hold the name already
            del self._by_name[name]

    def _remember(self, session: int, successor: int) -> None:
        self._former[session] = successor
        if len(self._former) > REMEMBERED:
            self._former.popitem(last=False)


class _Turn:
    """The lock of one name, and how many hold it or wait for it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


def fenced(session: int, successor: int) -> ServiceError:
    """A newer session holds the run."""
    return ServiceError(
        "SESSION_FENCED",
        "a newer session holds this run, because another process opened it; this process must stop, so that two never "
        "train the same run",
        {"session": session, "successor": successor},
    )


def unknown(session: int, kind: type[ServiceError] = ServiceError) -> ServiceError:
    """No run is held by the session."""
    return kind(
        "SESSION_UNKNOWN",
        "this session holds no run here: it was closed, its run was deleted, or the server restarted; open the run again "
        "(set OpenSessionRequest.session to reattach)",
        {"session": session},
    )
