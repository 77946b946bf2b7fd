"""Signals that wait for the end of a step, so that nothing a signal handler raises can leave half a step done.

Python runs the handler of a signal in the main thread, between any two bytecodes. Ctrl-C's raises KeyboardInterrupt, others
SystemExit or a timeout. In the middle of a step that would leave Δ, x and S of different steps, and no `except` repairs what
may stop anywhere, itself included. So a step is a section:

    with deferred:
        …           a signal that comes here is noted
                    and its handler is called at the end, where it may raise

To the program a section is one long instruction: as in Python itself, signals of one number that come in it are one signal.

A section that hangs can still be left. A second signal to stop gets through where the section is `exposed`, as in BASE, whose
failure the step undoes; elsewhere it gets through after `PATIENCE` seconds.

Outside the main thread there is nothing to do, as no handler runs there. What another thread raises in this one by
PyThreadState_SetAsyncExc is not deferred.
"""

import importlib
import signal
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

Handler = Callable[[int, FrameType | None], Any]

ECHO: Final = 0.25
"""Seconds: a second signal that comes sooner is the first one sent twice, by a terminal and by a launcher."""
PATIENCE: Final = 10.0
"""Seconds after which a second signal to stop gets through wherever it comes."""

_MOMENT: Final = 0.005

_STOP: Final = frozenset(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
_FAULTS: Final = ("SIGKILL", "SIGSTOP", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS")
_NUMBERS: Final = tuple(int(each) for each in signal.valid_signals() if each < 32 and getattr(each, "name", "") not in _FAULTS)

# The functions that `signal` wraps. Its own turn each number into an enum, which takes twenty times as long.
_signal: Any = importlib.import_module("_signal")
_get: Callable[[int], Any] = _signal.getsignal
_set: Callable[[int, Any], Any] = _signal.signal


class _StandIn:
    """Takes a handler's place during a section. One that is left behind after a section calls the handler at once."""

    __slots__ = ("_section", "handler", "number")

    def __init__(self, section: "Deferred", number: int, handler: Handler) -> None:
        self._section = section
        self.number = number
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        if self._section.notes(self, number, frame):
            return None
        return self.handler(number, frame)


class Deferred:
    """The sections of this process: `with deferred:` begins one, or goes on in the one that has begun.

    Attributes:
        harmless: a handler that never raises and must not wait; None if there is none.
    """

    def __init__(self) -> None:
        self.harmless: Handler | None = None
        self.forget()

    def forget(self) -> None:
        """In a forked child: the section is the parent's."""
        for stand_in in getattr(self, "_stand_ins", ()):
            if _get(stand_in.number) is stand_in:
                with suppress(ValueError):
                    _set(stand_in.number, stand_in.handler)
        self._main = 0  # the thread that runs handlers, once it was here
        self._depth = 0
        self._exposed_at = 0  # the depth at which the section is exposed; 0 where it is not
        self._stand_ins: list[_StandIn] = []
        self._known: list[Any] = []  # the handlers that the stand-ins were made for, if they may be kept
        self._waiting: dict[int, tuple[_StandIn, FrameType | None, float]] = {}
        self._in_callback = False  # whether the section is `postponed`

    def __enter__(self) -> None:
        if threading.get_ident() != self._main and not self._on_main():
            return
        if self._depth:
            self._depth += 1
            return
        found = [*map(_get, _NUMBERS)]
        if found != self._known:
            self._look(found)
        # In this order: until the depth is 1 a stand-in calls its handler.
        try:
            for stand_in in self._stand_ins:
                _set(stand_in.number, stand_in)
            self._depth = 1
        except BaseException:
            self._put_back()
            raise

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() != self._main:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            self._depth = 0
            self._exposed_at = 0
            self._put_back()
            if not self._known:
                self._stand_ins = []
        except BaseException:
            self._put_back()
            raise
        finally:
            if self._waiting:
                self._deliver()
            self._in_callback = False

    def notes(self, stand_in: _StandIn, number: int, frame: FrameType | None) -> bool:
        """Whether a signal has to wait, and is noted; else its handler is to be called now."""
        if not self._depth:
            if self._in_callback:
                start_new_thread(_send_again, (number,))
            return self._in_callback
        if number not in self._waiting:
            self._waiting[number] = stand_in, frame, time.monotonic()
            return True
        exposed = self._depth == self._exposed_at
        if number not in _STOP or time.monotonic() - self._waiting[number][2] < (ECHO if exposed else PATIENCE):
            return True
        self._exposed_at = 0  # what the handler raises is about to be repaired
        del self._waiting[number]
        return False

    def _put_back(self) -> None:
        """The handlers are the program's again. One that is called meanwhile may raise, so this may have to be done again."""
        for stand_in in self._stand_ins:
            found = _set(stand_in.number, stand_in.handler)
            if found is not stand_in:  # the section itself installed another
                _set(stand_in.number, found)

    def expose(self) -> None:
        """From here on a second signal to stop gets through."""
        if threading.get_ident() == self._main:
            self._exposed_at = self._depth

    def cover(self) -> None:
        """The end of `expose`."""
        if threading.get_ident() == self._main:
            self._exposed_at = 0

    def postpone(self) -> None:
        """The section is one in a callback."""
        if threading.get_ident() == self._main and self._depth == 1:
            self._in_callback = True

    def _on_main(self) -> bool:
        """Whether this is the thread that runs handlers."""
        if threading.get_ident() != threading.main_thread().ident:
            return False
        try:
            _set(signal.SIGINT, _get(signal.SIGINT))
        except (TypeError, ValueError):  # a handler that Python can't install; a program that embeds Python
            return False
        self._main = threading.get_ident()
        return True

    def _look(self, found: list[Any]) -> None:
        """Makes stand-ins for the handlers found. Those of the program are not kept: they may hold whatever it has dropped."""
        handlers = {number: behind(handler) for number, handler in zip(_NUMBERS, found, strict=True) if callable(handler)}
        self._stand_ins = [_StandIn(self, *each) for each in handlers.items() if each[1] is not self.harmless]
        ours = (signal.default_int_handler, self.harmless)
        self._known = found if all(handler in ours for handler in found if callable(handler)) else []

    def _deliver(self) -> None:
        """Calls the handlers of the signals that waited, each of them even if one raises."""
        number = next(iter(self._waiting))
        stand_in, frame, _ = self._waiting.pop(number)
        try:
            if self._in_callback:
                start_new_thread(_send_again, (number,))
            else:
                stand_in.handler(number, frame)
        finally:
            if self._waiting:
                self._deliver()


class Exposed:
    """`with exposed:` around a part of a section that may be left halfway: its failure can be undone."""

    def __enter__(self) -> None:
        deferred.expose()

    def __exit__(self, *_: object) -> None:
        deferred.cover()


class Postponed:
    """`with postponed:` is a section in a callback of other code, which would take what a handler raises for the callback's own
    error: the handlers are called a moment after it, where the program is by then."""

    def __enter__(self) -> None:
        deferred.__enter__()
        deferred.postpone()

    def __exit__(self, *_: object) -> None:
        deferred.__exit__()


def _send_again(number: int) -> None:
    time.sleep(_MOMENT)
    if not callable(_get(number)):  # its action would be the system's
        return
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:  # on Windows: the handler runs on the main thread all the same, once it is not in C
        signal.raise_signal(number)


def behind(handler: Any) -> Any:
    """The handler that a stand-in stands for; any other handler itself."""
    return handler.handler if isinstance(handler, _StandIn) else handler


deferred: Final = Deferred()
exposed: Final = Exposed()
postponed: Final = Postponed()
