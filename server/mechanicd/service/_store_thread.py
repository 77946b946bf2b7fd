"""The one thread that uses the store, and what to do when a call of it does not return.

A database can freeze, and a disk can hang: then a call takes for ever, and no timeout of the database's own applies. So the
event loop watches how long the thread has been at one call. After `PATIENCE` seconds it is told so (`on_stall`), and whoever
waits for an answer hears `NoAnswer` until the thread works again; only `patient` calls, whose outcome must be known, wait on.
After `INTERRUPT_SECONDS` the store is asked to break the call off.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

T = TypeVar("T")

PATIENCE: Final = 3.0
INTERRUPT_SECONDS: Final = 35.0
"""More than PostgreSQL's own limit for a statement, which `_postgres` sets: a server that is alive has ended it by then."""
_LOOK_SECONDS: Final = 0.25


class NoAnswer(Exception):
    """The store has not answered in time. Whether a change that was asked for still happens is unknown."""


class _Job(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: "asyncio.Future[Any]"


class StoreThread:
    """Runs calls one after the other, in the order in which the event loop asks for them. Use it inside one event loop.

    The thread never delays the end of the process: one that waits for ever can't be joined.

    Args:
        interrupt: makes the call that runs fail soon, if that is possible; called on the event loop's thread.
        on_stall: called with the seconds when a call has taken longer than `PATIENCE`, once for each such call.

    Attributes:
        stalled: whether the call that runs now has taken longer than `PATIENCE`.
    """

    def __init__(self, interrupt: Callable[[], None], on_stall: Callable[[float], None]) -> None:
        self.stalled = False
        self._interrupt = interrupt
        self._on_stall = on_stall
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._impatient: set[asyncio.Future[Any]] = set()
        self._begun = 0.0  # when the call that runs now began; 0: none does
        self._thread = threading.Thread(target=self._run, name="mechanicd-store", daemon=True)
        self._thread.start()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to watch the thread. Call it inside the event loop."""
        self._watching = asyncio.create_task(self._watch(), name="mechanicd-store-watch")

    async def call(self, function: Callable[..., T], *arguments: Any, patient: bool = False) -> T:
        """What `function` returns on the thread.

        Args:
            patient: wait for the outcome, however long it takes.

        Raises:
            NoAnswer: unless `patient`. A call that had not begun by then never does.
        """
        if self.stalled and not patient:
            raise self._no_answer()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(function, arguments, answer))
        if patient:
            return await answer
        self._impatient.add(answer)
        try:
            return await answer
        finally:
            self._impatient.discard(answer)

    def stop(self) -> None:
        """No call follows."""
        if self._watching is not None:
            self._watching.cancel()
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.answer.done():  # nobody waits for it any more
                continue
            self._begun = monotonic()
            result: Any = None
            failure: BaseException | None = None
            try:
                result = job.function(*job.arguments)
            except BaseException as error:
                failure = error
            self._begun = 0.0
            with contextlib.suppress(RuntimeError):  # the event loop is closed: this thread was given up
                job.answer.get_loop().call_soon_threadsafe(self._give, job.answer, result, failure)
            del job, result, failure  # while it waits for the next, the thread keeps nothing alive

    def _give(self, answer: "asyncio.Future[Any]", result: Any, failure: BaseException | None) -> None:
        self.stalled = False
        if answer.done():
            return
        if failure is None:
            answer.set_result(result)
        else:
            answer.set_exception(failure)

    async def _watch(self) -> None:
        watched, looked, took, interrupted = 0.0, monotonic(), 0.0, False
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            begun, now = self._begun, monotonic()
            # What counts is the time that this loop has run meanwhile: a process that was frozen itself has waited for nobody.
            took, interrupted = (took + min(now - looked, 2 * _LOOK_SECONDS), interrupted) if begun == watched else (0.0, False)
            watched, looked = begun, now
            if not begun:
                continue
            if took > PATIENCE and not self.stalled:
                self.stalled = True
                for answer in self._impatient:
                    if not answer.done():
                        answer.set_exception(self._no_answer())
                self._on_stall(took)
            if took > INTERRUPT_SECONDS and not interrupted:
                interrupted = True
                self._interrupt()

    @staticmethod
    def _no_answer() -> NoAnswer:
        return NoAnswer(f"the store has not answered for {PATIENCE:.0f} s")
