"""A session's step that a signal interrupts at any line: it is taken whole or not at all, here and at the server."""

import gc
import random
import signal
import subprocess
import sys
import threading
import weakref
from types import FrameType
from typing import Any

import pytest

from mechanicd.client import LocalSession, Reductions, TunerConfig, framework, open_run
from tests.support.interrupts import At
from tests.support.soak import SOAK, chosen_seed

SEED = chosen_seed()
MOST = 400 if SOAK else 25
pytestmark = pytest.mark.timeout(3600 if MOST > 100 else 120)
STEPS = [Reductions(-1.0 - 0.1 * t, 0.5, 1.0 + t, 2.0) for t in range(6)]


def take(session: Any, reductions: Reductions, how: str) -> None:
    if how == "step":
        session.step(reductions)
    else:
        session.begin(reductions)
        session.finish(wait=how == "wait")


@pytest.mark.parametrize("policy", ["local", "hold"])
@pytest.mark.parametrize("call", ["step", "begin", "finish", "flush"])
def test_it_is_taken_whole_or_not_at_all(call: str, policy: Any, server: Any, project: str, history: Any) -> None:
    alone = LocalSession(TunerConfig())
    scales = [alone.step(reductions) for reductions in STEPS]

    def call_it(session: Any, at: At) -> None:
        wait = call != "flush"
        with at if call == "step" else At():
            if call == "step":
                session.step(STEPS[2])
        if call == "step":
            return
        with at if call == "begin" else At():
            session.begin(STEPS[2])
        with at if call == "finish" else At():
            session.finish(wait=wait)
        with at if call == "flush" else At():
            session.flush()

    def opened(run: str) -> Any:
        session = open_run(server.target, run, project=project, start=0, on_outage=policy)
        for reductions in STEPS[:2]:
            session.begin(reductions)
            session.finish(wait=False)
        return session

    counter = At()
    call_it(opened("lines"), counter)
    lines = range(1, counter.count + 1)
    for n in lines if counter.count <= MOST else sorted(random.Random(SEED).sample(lines, MOST)):
        session, at = opened(f"r{n}"), At(n)
        try:
            call_it(session, at)
            assert not at.sent, f"seed {SEED}: line {n} of {call}"  # else this time the call took fewer lines
        except KeyboardInterrupt:
            pass
        if session._next is not None:  # between begin and finish the program itself was interrupted
            session.finish()
        for reductions in STEPS[session.state.step :]:
            session.step(reductions)
        session.close()
        kept = [(record.step, record.scale[0]) for record in history(server.target, f"r{n}", project)]
        assert kept == list(enumerate(scales, 1)), f"seed {SEED}: line {n} of {call}"


def test_a_close_that_is_interrupted_leaves_no_thread(new_server: Any, wait_for: Any) -> None:
    """The server is away, so close() waits for it; Ctrl-C ends the wait."""
    before = set(threading.enumerate())
    server = new_server().start()
    session = open_run(server.target, "away", start=0)
    session.step(STEPS[0])
    server.kill()
    session.step(STEPS[1])
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        session.close()
    assert wait_for(lambda: not any(thread.name.startswith("mechanicd") for thread in {*threading.enumerate()} - before))


def test_handlers_are_the_programs_again_and_none_that_it_dropped_is_kept() -> None:
    class Handler:
        def __call__(self, number: int, frame: FrameType | None) -> None:
            self.heard = number

    session, handler = LocalSession(TunerConfig()), Handler()
    kept = weakref.ref(handler)
    former = signal.signal(signal.SIGUSR1, handler)
    with pytest.raises(KeyboardInterrupt), At(10):
        session.step(STEPS[0])
    session.step(STEPS[1])
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGUSR1, former)
    del handler
    gc.collect()
    assert kept() is None


def test_off_the_main_thread_nothing_is_deferred() -> None:
    """The main thread's signals are none of a training's on another thread."""
    session, inside, go_on = LocalSession(TunerConfig()), threading.Event(), threading.Event()

    class Rate:
        def __float__(self) -> float:
            inside.set()
            go_on.wait(10.0)
            return 0.1

    def train() -> None:
        with framework.deferred:
            float(Rate())
            session.step(STEPS[0])

    thread = threading.Thread(target=train)
    thread.start()
    inside.wait(10.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert session.state.step == 0
    finally:
        go_on.set()
        thread.join()
    assert session.state.step == 1


CHILD = """
import os, signal, sys, time
from mechanicd.client import framework

with framework.deferred:
    child = os.fork()
    if child == 0:  # it never comes to the end of its parent's section
        try:
            signal.raise_signal(signal.SIGINT)
            os._exit(1)
        except KeyboardInterrupt:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
try:
    with framework.deferred:
        signal.raise_signal(signal.SIGINT)
        print("to the end")
except KeyboardInterrupt:
    print("and then")
"""


def test_a_child_forked_in_a_section_is_interrupted_as_ever() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "to the end\nand then\n"


def test_wherever_a_handler_raises_the_handlers_are_the_programs_again() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # some before the one that comes, some after it
    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        n, sent = 0, True
        while sent:
            n += 1
            try:
                with At(n, signal.SIGUSR1, opcodes=True) as at:  # noqa: SIM117  (the inner one alone is traced)
                    with framework.deferred:
                        pass
            except KeyboardInterrupt:
                pass
            sent = at.sent
            assert [signal.getsignal(number) for number in numbers] == [stop] * len(numbers), f"instruction {n}"
        assert n > 50
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
