"""Programs for tests that import much and need a process of their own: forks of a process that has imported it once."""

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final

_made: list["Warm"] = []
_PROCESS: Final = Path(__file__).with_name("warm_process.py")


class Warm:
    """A Python that has imported these modules, and runs programs from there. `options`: Python's own, such as `-W error`."""

    def __init__(self, modules: Sequence[str], options: Sequence[str] = ()) -> None:
        self._requests, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, *options, str(_PROCESS), str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def start(self, *command: str, folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> "Program":
        """Starts a program with its arguments in this folder. `environment` adds to this process's."""
        output, errors = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  # the program's
        ours, theirs = os.pipe()
        request = {"command": command, "folder": str(folder), "environment": {**os.environ, **environment}}
        socket.send_fds(self._requests, [json.dumps(request).encode()], [output.fileno(), errors.fileno(), theirs])
        os.close(theirs)
        return Program(os.fdopen(ours, "rb", buffering=0), output, errors)

    def close(self) -> None:
        self._requests.close()
        self._process.wait()


class Program:
    """A program that has been started."""

    def __init__(self, report: IO[bytes], output: IO[bytes], errors: IO[bytes]) -> None:
        self._report, self._output, self._errors = report, output, errors
        self.pid: Final = int(report.readline())

    def end(self, timeout: float = 100.0) -> subprocess.CompletedProcess[str]:
        """Waits for its end at most so many seconds, then kills it. Its exit code, output and errors."""
        if not select.select([self._report], [], [], timeout)[0]:
            os.kill(self.pid, signal.SIGKILL)
        with self._report, self._output, self._errors:
            code = int(self._report.readline())
            self._output.seek(0)
            self._errors.seek(0)
            return subprocess.CompletedProcess([], code, self._output.read().decode(), self._errors.read().decode())


@functools.cache
def warm(*modules: str, options: tuple[str, ...] = ()) -> Warm:
    """The one of this process that has imported these; it ends with the session."""
    _made.append(Warm(modules, options))
    return _made[-1]


def close() -> None:
    for one in _made:
        one.close()
    _made.clear()
