"""The demo's processes: a server, and training processes that report line by line. Whatever ends the demo ends them first."""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from mechanicd.v1 import local_token

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
_STOP_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_READY: Final = re.compile(r"grpc=(\S+)(?:.* http=(\S+))?.*\n")


class DemoError(Exception):
    """The demo can't continue. The message says why and where to look."""


class Stopped(BaseException):
    """The demo was told to stop by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Turns Ctrl-C, SIGTERM and a closed terminal into `Stopped`. Only `check` raises it, never the start of a process."""

    def __init__(self) -> None:
        self._received: int | None = None

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._hear) for signum in _STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _hear(self, signum: int, _: FrameType | None) -> None:
        self._received = signum

    def check(self) -> None:
        """Raises Stopped if a signal has arrived."""
        if self._received is not None:
            raise Stopped(self._received)


def _spawn(command: Sequence[str], stdout: int, log: Path) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that a Ctrl-C in the terminal reaches only the demo."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **threads},
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> None:
    """Waits for a process that was told to stop, and kills it if that takes too long."""
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log."""
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


class Server:
    """`mechanicd serve` on a free port, with its store in a file.

    Attributes:
        target: its address.
        page: the address of its page, or "".

    Args:
        http: the address for its page; "off": no page; "": the default address, or another port if that one is taken.
    """

    def __init__(self, store_url: str, logs: Path, check: Callable[[], None], http: str = "off") -> None:
        self._out, self._log = logs / "server.out", logs / "server.log"
        with self._out.open("wb") as stdout:
            command = ["-m", "mechanicd.cli", "serve", "--grpc", "127.0.0.1:0", "--store", store_url]
            command += ["--http", http] if http else []
            self._process = _spawn(command, stdout.fileno(), self._log)
        try:
            self.target, self.page = self._wait(check)
        except BaseException:
            self.stop()
            raise

    def _wait(self, check: Callable[[], None]) -> tuple[str, str]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            check()
            self.check()
            if ready := _READY.search(self._out.read_text()):
                return ready[1], ready[2] or ""
            time.sleep(0.05)
        raise DemoError(f"the server was not ready in {START_SECONDS:.0f} s; see {self._log}")

    @property
    def link(self) -> str:
        """An address that signs a browser in to the page, by the token that the server left for its own user."""
        try:
            return local_token.link(self.page, local_token.path(self.page).read_text(encoding="ascii").strip())
        except (OSError, ValueError):  # it asks nobody who they are, or could not leave one
            return self.page

    def check(self) -> None:
        """Raises DemoError if the server has ended."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"the server ended with exit status {code}; see {self._log}\n{tail(self._log)}")

    def stop(self) -> None:
        """Stops the server after it has drained."""
        self._process.terminate()
        _end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


@dataclass
class _Member:
    process: subprocess.Popen[bytes]
    unread: bytes = field(default=b"")


class Crew:
    """The running training processes, by name."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._members: dict[str, _Member] = {}
        self._selector = selectors.DefaultSelector()

    def __len__(self) -> int:
        return len(self._members)

    def log(self, name: str) -> Path:
        """The file for a process's standard error."""
        return self._logs / f"{name.replace('/', '-')}.log"

    def start(self, name: str, command: Sequence[str]) -> None:
        """Starts `python COMMAND` under a name that is not in use."""
        process = _spawn(command, subprocess.PIPE, self.log(name))
        self._members[name] = _Member(process)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, name)

    def listen(self, seconds: float) -> Iterator[tuple[str, str | int]]:
        """Yields what arrives within some time: (name, line), and last for each name (name, exit status)."""
        for key, _ in self._selector.select(seconds):
            name: str = key.data
            member = self._members[name]
            data = os.read(key.fd, 1 << 16)
            *lines, member.unread = (member.unread + data).split(b"\n")
            for line in lines:
                yield name, line.decode()
            if not data:
                yield name, self._bury(name)

    def _bury(self, name: str, seconds: float = STOP_SECONDS) -> int:
        member = self._members.pop(name)
        assert member.process.stdout is not None
        self._selector.unregister(member.process.stdout)
        member.process.stdout.close()
        _end(member.process, seconds)
        return member.process.returncode

    def kill(self, name: str) -> int:
        """Kills a process, as if its machine had failed, and returns its id. Its last lines still arrive, then its end."""
        process = self._members[name].process
        process.kill()
        return process.pid

    def stop(self) -> None:
        """Tells all processes to stop, and waits until they have."""
        for member in self._members.values():
            member.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for name in list(self._members):
            self._bury(name, deadline - time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
        self._selector.close()
