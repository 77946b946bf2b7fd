"""What the programs of the fork matrix share: a training that checks every S, and children of every kind beside it."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mechanicd.client import Client, Reductions, Session, SessionClosed, connect, open_run
from mechanicd.tuner import Tuner

HUNG_AFTER = 40
"""Seconds after which SIGALRM ends a child that hangs; its exit code is then -14."""

R = Reductions(-1.0, 0.5, 1.0, 2.0)


class Training:
    """A run whose scalars come from a seed. Each S must be the one of a tuner in this process, bit for bit."""

    def __init__(self, session: Session, seed: int) -> None:
        self.session = session
        self.scales: list[float] = []
        self._rng = random.Random(seed)
        self._tuner = Tuner()
        self._state = self._tuner.init()

    def begin(self) -> None:
        rng = self._rng
        reductions = Reductions(rng.gauss(-0.1, 1.0), rng.gauss(0.0, 1.0), rng.random(), rng.random())
        self.session.begin(reductions)
        self._state = self._tuner.update(self._state, reductions)

    def finish(self) -> None:
        (S,) = self.session.finish()
        (expected,) = self._state.scale
        assert expected == S, f"step {self._state.step}: S = {S!r}, the tuner in this process has {expected!r}"
        self.scales.append(S)

    def step(self, count: int = 1) -> "Training":
        for _ in range(count):
            self.begin()
            self.finish()
        return self

    def end(self, folder: str) -> None:
        """Closes the session when all is durable, and leaves word of its scales for the test to compare with the history."""
        assert self.session.flush(30) == len(self.scales)
        self.session.close()
        run = self.session.name.split("/", 3)[3]
        (Path(folder) / f"{run.replace('/', '.')}.json").write_text(json.dumps({"run": run, "scales": self.scales}))


def refused(*uses: Callable[[], object]) -> bool:
    """Whether each of these is refused with the reason FORKED_PROCESS."""
    for use in uses:
        try:
            use()
        except SessionClosed as error:
            if error.reason != "FORKED_PROCESS":
                return False
        else:
            return False
    return True


class Children:
    """Forked children of the kinds that programs have, beside a session. Up to four live at a time."""

    def __init__(self, client: Client, session: Session, rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._client = client
        self._session = session
        self._rng = rng
        self._alive: list[tuple[str, int, int]] = []
        self._kinds: dict[str, tuple[Callable[[], None], int]] = {
            "uses the session": (self._use, 7),
            "opens a run": (self._open, 7),
            "forks in turn": (self._fork, 7),
            "leaves by os._exit": (lambda: os._exit(7), 7),
            "leaves by sys.exit": (lambda: sys.exit(7), 7),
            "leaves by an exception": (self._raise, 1),
            "runs a subprocess": (self._run, 7),
            "becomes another program": (lambda: os.execvp("sh", ["sh", "-c", "exit 7"]), 7),
        }

    def fork(self) -> None:
        """Forks a child of a random kind. The child ends inside this call, through whatever blocks the caller is in."""
        while len(self._alive) >= 4:
            self._reap()
        kind = self._rng.choice(list(self._kinds))
        act, code = self._kinds[kind]
        child = os.fork()
        if child == 0:
            signal.alarm(HUNG_AFTER)
            act()
            os._exit(8)
        self._alive.append((kind, child, code))
        self.counts[kind] += 1

    def join(self) -> None:
        """Waits for those that still live."""
        while self._alive:
            self._reap()

    def _reap(self) -> None:
        kind, child, expected = self._alive.pop(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == expected, f"a child that {kind} ended with {code}, not {expected}"

    def _use(self) -> None:
        session = self._session
        if refused(session.finish, session.finish, lambda: session.begin(R), lambda: session.step(R), session.flush):
            session.close("failed", "closed by a child, which has no say in it")
            os._exit(7)

    def _open(self) -> None:
        target = self._client.target
        with connect(target) as client:
            if refused(
                lambda: self._client.open_run("refused", start=0),
                lambda: client.open_run("refused", start=0),
                lambda: open_run(target, "refused", start=0),
            ):
                sys.exit(7)

    def _fork(self) -> None:
        grandchild = os.fork()
        if grandchild == 0:
            signal.alarm(HUNG_AFTER)
            self._use()
            os._exit(8)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))

    def _run(self) -> None:
        if subprocess.run(["true"], check=False).returncode == 0:
            sys.exit(7)

    def _raise(self) -> None:
        raise RuntimeError("on purpose: a child that fails must not fail its parent's run")


def report(**counts: object) -> None:
    """The last line of a program's output."""
    print(json.dumps(counts), flush=True)
