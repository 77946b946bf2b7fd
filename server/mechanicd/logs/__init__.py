"""The log of a server's processes. It never waits: a pipe that nobody reads, or a disk that hangs, costs lines, not steps.

A thread of its own writes them. While it can't, lines wait up to `MOST_BYTES`; what comes then is dropped and counted, and the
count stands in the log where they are missing.
"""

import logging
import os
import select
import sys
import threading
from collections import deque
from time import monotonic
from typing import Any, Final

from mechanicd.v1.names import plain

__all__ = ["MOST_BYTES", "BackgroundHandler", "OneLine", "log_to_stderr"]

MOST_BYTES: Final = 2**20
"""How much text may wait to be written."""
_LAST_SECONDS: Final = 1.0
_FORMAT: Final = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def log_to_stderr(level: str | int) -> None:
    """Sends every log line of this process to stderr, in the background. The process's end waits a moment for them.

    Args:
        level: the lowest level to log.
    """
    # Without a stderr (`2>&-`) its number may be that of another file, such as the database.
    handler: logging.Handler = logging.NullHandler()
    if sys.stderr is not None:
        try:
            handler = BackgroundHandler(sys.stderr.fileno())
        except OSError:  # a stand-in, such as a StringIO
            handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(_FORMAT))
    logging.basicConfig(handlers=[handler], level=level)
    logging.captureWarnings(True)


class OneLine(logging.Formatter):
    """A message is one line, whatever a client put into it: it can't look like another line, and no terminal obeys it.

    The lines of a traceback are indented, and just as plain.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = plain(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"  {plain(line)}" for line in text.split("\n"))


class BackgroundHandler(logging.Handler):
    """Writes lines to a file descriptor, on a thread of its own, so `emit` never waits for whoever reads them.

    It writes to the descriptor itself and not to `sys.stderr`, whose lock the interpreter would want at its end.

    Args:
        descriptor: where the lines go, in UTF-8. It stays open.
        most_bytes: how much text may wait.
    """

    def __init__(self, descriptor: int, most_bytes: int = MOST_BYTES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._most = most_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = self._dropped = 0
        self._changed = threading.Condition()
        self._idle = True
        threading.Thread(target=self._run, name="mechanicd-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a line, or counts it as dropped."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:  # a format that does not fit its arguments; logging's own way would write to stderr itself
            line = f"{record.name}: a log line can't be formatted: {record.msg!r}\n".encode(errors="backslashreplace")
        with self._changed:
            if self._bytes + len(line) > self._most:
                self._dropped += 1
            else:
                self._lines.append(self._note() + line)
                self._bytes += len(self._lines[-1])
            self._changed.notify_all()

    def flush(self) -> None:
        """Waits until all lines are written, a second at most. `logging.shutdown` calls it at the process's end."""
        end = monotonic() + _LAST_SECONDS
        with self._changed:
            while (self._lines or not self._idle) and (left := end - monotonic()) > 0:
                self._changed.wait(left)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                while not self._lines and not self._dropped:
                    self._changed.wait()
                self._idle = False
                if not self._lines:
                    self._lines.append(self._note())
                    self._bytes += len(self._lines[0])
                line = self._lines.popleft()
            self._write(line)
            with self._changed:
                self._bytes -= len(line)

    def _note(self) -> bytes:
        """What stands where lines were dropped; empty if none were."""
        dropped, self._dropped = self._dropped, 0
        return f"… {dropped} log lines were dropped here: they could not be written in time\n".encode() if dropped else b""

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # whoever made the pipe wants no writer to wait; this thread may
                select.select([], [self._descriptor], [])
            except OSError:  # its reader is gone, or the disk is full: there is nowhere to say so
                return
