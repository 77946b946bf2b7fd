"""A real `mechanicd serve` for tests: its own process, its own store, a free port."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

CLOCKS: Final = Path(__file__).with_name("clocks")
"""In PYTHONPATH: the clock of a process as a test sets it."""


class ServerProcess:
    """A `mechanicd serve` that a test can kill, and start again on the same port and store.

    Args:
        folder: for its log, and for its SQLite file unless `store` says otherwise.
        options: of `mechanicd serve`. It serves the page only if they include `--http`; `page` is then its URL. It asks for
            tokens only if they include `--auth`.
        store: the store's URL.
    """

    def __init__(self, folder: Path, *options: str, store: str = "") -> None:
        self.folder = folder
        self.database = folder / "mechanicd.db"
        self.store = store or f"sqlite:///{self.database}"
        self.options = (
            *(() if "--http" in options else ("--http", "off")),
            *(() if "--auth" in options else ("--auth", "off")),
            *options,
        )
        self.page = ""
        self.port = free_port()
        self.log = folder / "server.log"
        self._clock = folder / "clock"
        self._process: subprocess.Popen[str] | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def set_clock(self, seconds: float) -> None:
        """From now on its clock is so far ahead of this machine's, also after it is started again. Begin before it starts."""
        self._clock.write_text(str(seconds))

    def start(self) -> "ServerProcess":
        """Returns once the server says that it is ready."""
        command = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", self.target]
        command += ["--store", self.store, *self.options]
        with self.log.open("a") as log:
            clock = {"PYTHONPATH": str(CLOCKS), "TEST_CLOCK": str(self._clock)} if self._clock.exists() else {}
            environment = {**os.environ, **clock}
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        found = re.match(r"mechanicd ready: grpc=\S+ store=\S+ pid=\d+(?: http=(\S+))?\n", ready)
        assert found, self.log.read_text()
        self.page = found[1] or ""
        return self

    def kill(self) -> None:
        """SIGKILL: no drain, no goodbye."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: the process exists but does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: the process continues where it was stopped."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM: drain. Returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        code = process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()
        return code


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether the condition became true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
