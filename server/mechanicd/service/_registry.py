"""Which session holds which run on this server, and why any other session is refused.

The registry is a cache: the run's row in the store is the truth. Memory is bounded by the runs that are held now, plus the
newest `REMEMBERED` sessions that lost theirs and trainers that opened one. For older sessions, `Engine.explain` asks the store.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from typing import Final, NamedTuple

from mechanicd.service._active_run import ActiveRun
from mechanicd.service._errors import ServiceError, alias
from mechanicd.service._metrics import Metrics
from mechanicd.store import OwnershipLost
from mechanicd.v1 import names

log = logging.getLogger("mechanicd.service")

REMEMBERED: Final = 10_000
"""How many sessions that lost their run are remembered."""


class Unrecognized(ServiceError):
    """SESSION_UNKNOWN as far as memory goes; the store may know who holds the session's run now."""


class Registry:
    """The runs that this server holds. Use it inside one event loop.

    A held run is found by its session and by its name. At most one session holds a run, so both indices change together.

    Who may change what: a run enters only after the store has given it to its session (`hold`), and it leaves when it is closed
    or deleted (`release`), fenced (`fencing`), or found to belong to another server (`lost`). Opening, deleting and rewinding
    happen under `lock(name)`; a close and a lost run need no lock, because they only remove the very run they are about.

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
        self._former: OrderedDict[int, _Former] = OrderedDict()  # by session. Oldest first.
        self._openers: OrderedDict[names.RunName, tuple[int, int]] = OrderedDict()  # trainer, attempt. Oldest first.
        self._locks: dict[names.RunName, _NamedLock] = {}

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
        """The run of this name, if a session holds it here. It may be fenced."""
        return self._by_name.get(name)

    def hold(self, name: names.RunName, run: ActiveRun) -> None:
        """From now on, the run's session holds it here. Call it only after the store has said so."""
        self._former.pop(run.session, None)  # the session may return from another server
        self._by_name[name] = run
        self.by_session[run.session] = run

    def opened_before(self, name: names.RunName, trainer: int, attempt: int) -> bool:
        """Whether the last session of this run was opened by an earlier call of the same trainer.

        Raises:
            ServiceError: SESSION_FENCED, if it was opened by this call or a later one: this one comes late.
        """
        last = self._openers.get(name, (0, 0))
        if not trainer or trainer != last[0]:
            return False
        if attempt <= last[1]:
            raise ServiceError(
                "SESSION_FENCED", f"a later call of this trainer has opened {name}; this one came late", {"name": name}
            )
        return True

    def opened(self, name: names.RunName, trainer: int, attempt: int) -> None:
        """A call of a trainer (0: unknown) has opened the run."""
        self._openers.pop(name, None)
        if trainer:
            self._openers[name] = (trainer, attempt)
        if len(self._openers) > REMEMBERED:
            self._openers.popitem(last=False)

    def release(self, run: ActiveRun) -> None:
        """The run was closed: from now on, its session is unknown.

        Takes the run and not its name: while the store was closing it, a new session may have taken the name.
        """
        self._drop(run)

    def deleted(self, run: ActiveRun) -> ServiceError:
        """The run was deleted while its session held it. Returns what the session is told from now on."""
        self._drop(run)
        self._remember(run, _DELETED)
        return self.refusal(run.session)

    def lost(self, run: ActiveRun, gone: bool = False) -> ServiceError:
        """A commit or a claim found that the run is not ours any more. Returns what its session is told from now on.

        Args:
            gone: it has no row any more. Otherwise another server took it over: the row has an epoch that is not ours.
        """
        if self.by_session.get(run.session) is not run:
            return self.refusal(run.session)  # it was closed or deleted here
        self._metrics.lost += not gone
        what = "was deleted while a session held it" if gone else "another server took it over"
        log.warning("projects/%s/runs/%s: %s", run.row.project, run.row.run, what)
        if gone:
            return self.deleted(run)
        self._drop(run)
        self._remember(run, _ELSEWHERE)
        return self.refusal(run.session)

    @contextlib.contextmanager
    def fencing(self, name: names.RunName, successor: int) -> Iterator[ActiveRun | None]:
        """Refuses the session that holds the run here, while the body gives the run to `successor` in the store.

        The fence becomes permanent only if the body succeeds. If it fails, the old session keeps the run; if another server was
        faster, the run is lost. The caller holds `lock(name)`, so there is one fence per run at a time.

        Args:
            successor: the key of a session, or a number of none.

        Yields:
            The run that is fenced, or None if no session holds it here.
        """
        run = self._by_name.get(name)
        if run is None:
            yield None
            return
        # From here on `Engine.step` takes no step of the old session, so a flush in the body gets every step that was answered.
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
        self._remember(run, successor)

    @contextlib.asynccontextmanager
    async def lock(self, name: names.RunName) -> AsyncIterator[None]:
        """A lock per run name, to be held while changing who holds the run. It exists only while someone holds it or waits.

        It covers this server only. Between servers, the epoch in the run's row decides.
        """
        lock = self._locks.setdefault(name, _NamedLock())
        # Counted before the wait: a lock that someone waits for must never be replaced by a second one of the same name.
        lock.users += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[name]

    # --- why a session is refused ---------------------------------------------------------------------------------------

    def refusal(self, session: int) -> ServiceError:
        """Why a session holds no run here."""
        run = self.by_session.get(session)
        former = self._former.get(session) if run is None else _Former(run.fenced_by, _name(run))
        if former is None:
            return unknown(session, Unrecognized)
        if former.successor == _DELETED:
            return ServiceError(
                "RUN_DELETED",
                f"{former.name} was deleted while this session held it; further steps of it are not recorded. To go on at the "
                "server, open the run again with the tuner's state, as a new run",
                {"name": former.name, "session": session},
            )
        if former.successor != _ELSEWHERE:
            return fenced(session, former.successor)
        return ServiceError(
            "OWNERSHIP_LOST",
            "another server took over this run and its session; open the session again, here or elsewhere",
            {"session": session},
        )

    def fenced(self, session: int, successor: int, name: names.RunName) -> ServiceError:
        """Why a session is refused whose run, says the store, was taken by `successor` (0: unknown, it closed the run since).

        A fenced session never gets its run back, so the answer is remembered.
        """
        if successor and session not in self.by_session:
            self._former[session] = _Former(successor, name)
            self._forget_some()
        return fenced(session, successor)

    def missing(self, session: int, deleted: names.RunName | None) -> ServiceError:
        """Why a session is refused that the store does not know: its run was deleted, or it never existed here.

        Args:
            deleted: the deleted run that it held, says the store.
        """
        former = self._former.get(session)
        if former is not None and former.successor == _ELSEWHERE:  # it held a run here: that one is gone
            self._former[session] = _Former(_DELETED, former.name)
        elif deleted is not None and former is None:
            self._former[session] = _Former(_DELETED, deleted)
            self._forget_some()
        return self.refusal(session)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _drop(self, run: ActiveRun) -> None:
        self.by_session.pop(run.session, None)
        name = _name(run)
        if self._by_name.get(name) is run:  # not if a successor holds the name already
            del self._by_name[name]

    def _remember(self, run: ActiveRun, successor: int) -> None:
        self._former[run.session] = _Former(successor, _name(run))
        self._forget_some()

    def _forget_some(self) -> None:
        if len(self._former) > REMEMBERED:
            self._former.popitem(last=False)


class NewName(int):
    """A successor that is no session: the run was renamed, and the session fenced. `run` is the name that it has now."""

    run: names.RunName

    @classmethod
    def of(cls, number: int, run: names.RunName) -> "NewName":
        """The successor with this number."""
        made = cls(number)
        made.run = run
        return made


class _Former(NamedTuple):
    """A session that lost its run: to a session, or `_ELSEWHERE`, together with itself, or because it is `_DELETED`."""

    successor: int
    name: names.RunName


_ELSEWHERE: Final = 0
_DELETED: Final = -1


def _name(run: ActiveRun) -> names.RunName:
    return names.RunName(run.row.project, run.row.run)


class _NamedLock:
    """The lock of one run name, and how many tasks hold it or wait for it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


def fenced(session: int, successor: int) -> ServiceError:
    """A newer session holds the run, or (`NewName`) it was renamed."""
    if isinstance(successor, NewName):
        return ServiceError(
            "SESSION_FENCED",
            f"this session's run was renamed to {successor.run}, and the session fenced; this process must stop: start it "
            "again under that name, from its checkpoint",
            {"session": session, "successor": alias(successor), "renamed_to": successor.run},
        )
    return ServiceError(
        "SESSION_FENCED",
        "a newer session holds this run, because another process opened it; this process must stop, so that two never "
        "train the same run. Jobs that train runs of their own need names of their own, such as "
        "run='sweep/{slurm_array_task_id}' or run='sweep/{random}'",
        {"session": session, "successor": alias(successor)},
    )


def unknown(session: int, kind: type[ServiceError] = ServiceError) -> ServiceError:
    """No run is held by the session."""
    return kind(
        "SESSION_UNKNOWN",
        "this session holds no run here: it was closed, its run was deleted, or the server restarted; open the run again "
        "(set OpenSessionRequest.session to reattach)",
        {"session": session},
    )
