"""Group commit: steps are collected in memory and committed together, on one thread, every few milliseconds.

All store calls run on one thread, in the order in which the event loop submits them, so the store needs no lock and a read that
is submitted after a commit sees it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

from mechanicd.service._active_run import ActiveRun
from mechanicd.service._errors import ServiceError
from mechanicd.service._memory import trim
from mechanicd.service._metrics import Metrics
from mechanicd.service._store_thread import NoAnswer, StoreThread
from mechanicd.store import Commit, Release, Store, StoreConflict, StoreDamaged, StoreError, StoreRejected

log = logging.getLogger("mechanicd.service")
T = TypeVar("T")

RETRY_SECONDS: Final = 0.5
FOLD_BYTES: Final = 16 * 2**20
FOLD_SECONDS: Final = 30.0
"""The journal is folded when it is this large or this old. A fold rewrites the newest chunk of each run in it."""
TEND_SECONDS: Final = 1.0
CLOCK_SECONDS: Final = 60.0
RETAIN_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 600.0
"""So long after its start a server deletes no run for its age: it may have been away for longer than that, or its clock may
have been set, and the run's trainer needs a moment to come back."""
SEEN_NS: Final = 600 * 10**9
"""How often the row of a run without steps is told that its trainer is there."""
_STOP_LOOK_SECONDS: Final = 0.05
_TROUBLE: Final = StoreError.public


@dataclass(frozen=True, slots=True)
class Retention:
    """Which history is discarded over time.

    Attributes:
        keep_steps: how many exact steps to keep per run, counted from its end; of earlier ones the extremes remain. None: all.
        keep_days: runs whose last step is older are deleted. None: never delete.
    """

    keep_steps: int | None = None
    keep_days: float | None = None

    def oldest(self, now: int) -> int | None:
        """The time (ns since 1970) of the oldest last step that a run may have."""
        return None if self.keep_days is None else now - int(self.keep_days * 86_400e9)


class Writer:
    """Owns the store's thread. Use it inside one event loop.

    Args:
        store: where steps are committed.
        interval: seconds from the first waiting step to its commit; steps that arrive meanwhile join that commit.
        on_lost: called with a run whose row has another owner now, and with whether it has no row any more; returns what its
            session is told. Its uncommitted steps are refused.
        on_health: called with False when the store fails, and with True when it works again.
        retention: which history to discard; None keeps all.
        metrics: where commits are counted.
        held: the runs that are held here, always current.

    Attributes:
        trouble: why the store can't be used now, in words that any client may read; "" if the last attempt to use it worked.
    """

    def __init__(
        self,
        store: Store,
        interval: float,
        on_lost: Callable[[ActiveRun, bool], ServiceError],
        on_health: Callable[[bool], None],
        retention: Retention | None = None,
        metrics: Metrics | None = None,
        held: Collection[ActiveRun] = (),
    ) -> None:
        self.store = store
        self.interval = interval
        self._on_lost = on_lost
        self._held = held
        self._on_health = on_health
        self._thread = StoreThread(store.interrupt, self._stalled)
        self._dirty: set[ActiveRun] = set()
        self._rejected: set[ActiveRun] = set()  # what the store rejects although it works
        self._waiting: list[tuple[ActiveRun, int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self.trouble = ""
        self._metrics = metrics or Metrics()
        self._retention = retention
        self._retained, self._started = 0.0, monotonic()
        self._folded, self._folding = monotonic(), False
        self._stopping = False
        self._clock_set = False
        self._task: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to use the store worked."""
        return not self.trouble

    def start(self) -> None:
        """Starts to commit the runs that are marked. Call it inside the event loop."""
        self._thread.start()
        self._task = asyncio.create_task(self._run(), name="mechanicd-writer")

    def mark(self, run: ActiveRun) -> None:
        """The run has something to commit. Cheap, because it is called at every step."""
        self._dirty.add(run)
        self._wake.set()

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Runs a store method on the store's thread.

        Raises:
            ServiceError: STORE_UNAVAILABLE. The details, which name hosts and files, go to the log and not to the client.
                STORE_DAMAGED, with the steps that are lost.
            StoreConflict: somebody else was first; the caller handles it.
        """
        try:
            return await self._thread.call(function, *args)
        except StoreConflict:
            raise
        except StoreDamaged as error:
            log.error("store: %s", error)
            where = {"branch": error.branch, "first_step": error.first_step, "last_step": error.last_step}
            raise ServiceError("STORE_DAMAGED", str(error), where if error.last_step else {}) from None
        except StoreError as error:  # unreachable, full, read-only, migrated by a newer server: to a client it is all one
            log.error("store: %s", error)
            why = error.public if error.public != _TROUBLE else "the store can't be read or written right now"
            raise ServiceError("STORE_UNAVAILABLE", f"{why}; nothing changed, try again in a moment") from None
        except NoAnswer as error:
            raise ServiceError(
                "STORE_UNAVAILABLE",
                f"{error}; whether a change that was asked for still happens is unknown, try again in a moment",
            ) from None

    async def flush(self, run: ActiveRun) -> None:
        """Waits until the run's steps so far are durable. Steps that arrive while it waits are not waited for.

        Raises:
            ServiceError: STORE_UNAVAILABLE, OWNERSHIP_LOST, RUN_DELETED.
        """
        target = run.state.step
        if run.durable_step >= target:
            return
        if self._thread.stalled:
            raise self._unavailable()
        if run in self._rejected:
            await self._retry({run})
            if run.durable_step < target:
                raise self._unavailable()
            return
        # The run is dirty: it was marked at each step, and a failed commit marks it again. So a commit will settle this.
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((run, target, future))
        self._urgent.set()
        await future

    async def release(self, release: Release) -> None:
        """Ends a session in the store."""
        await self.call(self.store.commit, [], [release])

    async def stop(self, seconds: float = 0.0) -> bool:
        """Commits what is waiting, and stops. The store stays open.

        Args:
            seconds: how long to wait for a store that does not answer.

        Returns:
            Whether the store's thread has ended. If not, a call of it hangs, and the store can't be closed.
        """
        self._stopping = True
        self._wake.set()
        self._urgent.set()
        ending, end = asyncio.create_task(self._end()), monotonic() + seconds
        while not (ending.done() or (self._thread.stalled and monotonic() >= end)):
            await asyncio.wait([ending], timeout=_STOP_LOOK_SECONDS)
        ended = ending.done()
        if ended:
            ending.result()
        else:
            tasks = [task for task in (ending, self._task) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._refuse_waiting()
        self._thread.stop()
        return ended

    async def _end(self) -> None:
        if self._task is not None:  # not cancelled: that would lose the steps of a commit in flight
            await asyncio.shield(self._task)
        await self._commit()
        await self._retry(self._rejected)
        await self._thread.call(int, patient=True)  # after it, the thread is at nothing any more

    async def _run(self) -> None:
        tended, more = monotonic(), False
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 0.001 if more else TEND_SECONDS)
            if self._wake.is_set():
                self._wake.clear()
                # Let more steps join this commit, unless someone waits for it.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._urgent.wait(), self.interval)
                self._urgent.clear()
                if not await self._commit() and not self._stopping:
                    # Who asks for a flush meanwhile gets an attempt at once, so its answer comes in time.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._urgent.wait(), RETRY_SECONDS)
                    self._wake.set()
                    continue
            # Upkeep runs between commits, in small portions, so that no flush waits long for it.
            if more or self.store.unfolded > FOLD_BYTES or monotonic() - tended >= TEND_SECONDS:
                more = await self._tend()
                tended = monotonic()

    async def _tend(self) -> bool:
        """One portion of the store's upkeep; returns whether there is more. Also notices a lost store when no steps arrive."""
        await self._retry(self._rejected)
        try:
            if self._folding or self.store.unfolded > FOLD_BYTES or monotonic() - self._folded >= FOLD_SECONDS:
                self._folding = await self._thread.call(self.store.fold, patient=True)
                self._folded = monotonic()
                if self._folding:
                    return True
                await self._thread.call(trim, patient=True)
            else:
                await self._thread.call(self.store.ping, patient=True)
                self._set_by(self.store.clock.ahead)
            if monotonic() - self._retained > RETAIN_SECONDS:
                self._note_trainers()
                if self._retention is not None and await self._retain(self._retention):
                    return True
                self._retained = monotonic()
        except Exception as error:  # as in _commit
            self._fail(error)
            return False
        self._well()
        return False

    def _note_trainers(self) -> None:
        """A trainer may evaluate for hours. Its run's row says that it is there, so that no server deletes it."""
        now = self.store.clock.now()
        for run in self._held:
            if run.seen(now, now - SEEN_NS):
                self.mark(run)

    async def _retain(self, retention: Retention) -> bool:
        """One portion of what is too old; returns whether there may be more."""
        here = frozenset(run.row.id for run in self._held if not run.stats.away)
        settled = monotonic() - self._started >= SETTLE_SECONDS
        oldest = retention.oldest(self.store.clock.now()) if settled else None
        return await self._thread.call(partial(self.store.retain, held=here), retention.keep_steps, oldest, patient=True)

    async def _commit(self) -> bool:
        """One group commit; returns whether the store took it."""
        async with self._commit_lock:
            # A run that is marked while this commit is in flight goes into the new set, and so into the next commit.
            runs, self._dirty = [run for run in self._dirty - self._rejected if run.dirty], set()
            if not runs:
                return True
            try:
                await self._commit_together(runs)
            except Exception as error:  # not only StoreError: whatever it is, the writer must keep running and report it
                if len(runs) == 1 or _of_all(error):
                    self._dirty.update(runs)
                    self._fail(error)
                    return False
                if not await self._commit_alone(runs):
                    return False
        self._well()
        return True

    async def _commit_together(self, runs: list[ActiveRun]) -> None:
        """One transaction. If it fails, the runs' steps are back in their queues."""
        commits: list[Commit] = [run.collect() for run in runs]
        begun = monotonic()
        try:
            # Patiently: only its outcome says what is durable, and the next commit starts from there.
            commits, kept, gone = await self._thread.call(self._keep, runs, commits, patient=True)
        except BaseException:
            # Nothing was written, or the outcome is unknown (a connection lost during COMMIT). If it was written, the retry
            # finds the row past the step that it starts from; the run then counts as lost, and its client reattaches.
            for run, commit in zip(runs, commits, strict=True):
                run.restore(commit)
            self._metrics.commits_failed += 1
            raise
        self._metrics.committed(commits, monotonic() - begun)
        # The commits of one transaction succeed one by one: each only if the run's row still has our epoch and session and
        # is at the step that the commit starts from. Where it isn't, nothing was written and the run is no longer ours.
        lost: dict[ActiveRun, ServiceError] = {}
        for run, commit, ok in zip(runs, commits, kept, strict=True):
            if ok:
                run.committed(commit)
            else:
                lost[run] = self._on_lost(run, run.row.id in gone)
        self._settle(lost)

    async def _retry(self, rejected: set[ActiveRun]) -> None:
        if rejected:
            async with self._commit_lock:
                await self._commit_alone(list(rejected))

    async def _commit_alone(self, runs: list[ActiveRun]) -> bool:
        """A transaction for each run, because one of them made the store reject all. That one keeps its steps in memory, and it
        is tried again alone, so that it holds up nobody else.

        Returns:
            Whether the store itself worked.
        """
        works = True
        for run in runs:
            try:
                await self._commit_together([run])
            except Exception as error:
                if _of_all(error):
                    works = False
                    self._dirty.add(run)
                    self._fail(error)
                    continue
                if run not in self._rejected:
                    name = f"projects/{run.row.project}/runs/{run.row.run}"
                    log.error("%s: can't be stored, its steps stay in memory: %s", name, error, exc_info=_unexpected(error))
                self._rejected.add(run)
                self._refuse_waiting(run)
            else:
                self._rejected.discard(run)
        return works

    def _keep(self, runs: list[ActiveRun], commits: list[Commit]) -> tuple[list[Commit], list[bool], set[int]]:
        """On the store's thread: computes the stats, and commits. Also returns the ids of runs that have no row any more."""
        sealed = [run.sealed(commit) for run, commit in zip(runs, commits, strict=True)]
        kept = self.store.commit(sealed, [])
        lost = {run.row.id for run, ok in zip(runs, kept, strict=True) if not ok}
        gone: set[int] = set()
        if lost:
            with contextlib.suppress(StoreError):  # then the next commit, or the session that reattaches, finds it out
                gone = lost - {row.id for row in self.store.rows(lost)}
        return sealed, kept, gone

    def _set_by(self, ahead: int) -> None:
        """The clock that the store's stands for is this many ns ahead of it."""
        if (abs(ahead) > CLOCK_SECONDS * 10**9) != self._clock_set:
            self._clock_set = not self._clock_set
            if self._clock_set:
                log.warning(
                    "the clock was set by %+.0f s; the times of steps follow it slowly, so that no run seems silent. Restart "
                    "the server to use the new time at once",
                    ahead / 1e9,
                )

    def _well(self) -> None:
        if self.trouble:
            self.trouble = ""
            log.warning("store: works again")
            self._on_health(True)

    def _settle(self, lost: Mapping[ActiveRun, ServiceError]) -> None:
        still = []
        for run, target, future in self._waiting:
            if future.done():
                continue
            if run in lost:
                future.set_exception(lost[run])
            elif run.durable_step >= target:
                future.set_result(None)
            else:
                still.append((run, target, future))
        self._waiting = still

    def _fail(self, error: Exception) -> None:
        before, self.trouble = self.trouble, error.public if isinstance(error, StoreError) else _TROUBLE
        if self.trouble != before:
            log.error("store: %s; steps are kept in memory, and the commit is retried", error, exc_info=_unexpected(error))
        if not before:
            self._on_health(False)
        self._refuse_waiting()

    def _stalled(self, seconds: float) -> None:
        before, self.trouble = self.trouble, f"the store has not answered for {seconds:.0f} s"
        if not before:
            log.error("store: no answer for %.0f s; steps are kept in memory until it answers", seconds)
            self._on_health(False)
        self._refuse_waiting()

    def _refuse_waiting(self, which: ActiveRun | None = None) -> None:
        """Whoever waits for a run's steps hears that they can't be made durable now; without a run, everybody does."""
        still = []
        for run, target, future in self._waiting:
            if which not in (None, run):
                still.append((run, target, future))
            elif not future.done():
                future.set_exception(self._unavailable())
        self._waiting = still

    def _unavailable(self) -> ServiceError:
        trouble = self.trouble or _TROUBLE
        return ServiceError("STORE_UNAVAILABLE", f"{trouble}; the steps are kept in memory, try again in a moment")


def _of_all(error: Exception) -> bool:
    """Whether no run can be stored, and not only one that the store rejects."""
    return isinstance(error, StoreError) and not isinstance(error, (StoreRejected, StoreDamaged))


def _unexpected(error: Exception) -> Exception | None:
    """The error if its traceback belongs in the log."""
    return None if isinstance(error, StoreError) else error
