"""Makes this process look like one on Windows or macOS, as far as our code can tell: `elsewhere.become("win32")`.

Call it once the packages of others are imported, since theirs are made for this system. What a system lacks is gone: modules,
attributes of `os`, `signal` and `socket`, signals, `/proc`.
"""

import _signal
import importlib.abc
import os
import signal
import socket
import sys
from typing import Any

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "uvloop", "triton")
OS = (
    *("register_at_fork", "fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getpgid", "setsid", "killpg", "nice"),
    *(
        "sched_getaffinity",
        "sched_setaffinity",
        "uname",
        "waitid",
        "wait",
        "getloadavg",
        "statvfs",
        "mkfifo",
        "sysconf",
        "ttyname",
    ),
)
SIGNAL = (
    "pthread_kill",
    "pthread_sigmask",
    "sigwait",
    "sigpending",
    "siginterrupt",
    "setitimer",
    "getitimer",
    "alarm",
    "pause",
)
KEPT = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
ONLY_LINUX = (("uvloop", "triton"), ("sched_getaffinity", "sched_setaffinity"), ("sigtimedwait",))


def become(platform: str) -> None:
    """From now on this process looks like one on "win32" or "darwin"."""
    windows = platform == "win32"
    modules, of_os, of_signal = (MODULES, OS, SIGNAL) if windows else ONLY_LINUX
    for name in modules:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Missing(modules))
    for module, names in ((os, of_os), (signal, of_signal)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    if windows:
        del socket.AF_UNIX
        for each in list(signal.Signals):
            if each.name not in KEPT and hasattr(signal, each.name):
                delattr(signal, each.name)
        valid = {signal.Signals[name] for name in KEPT}
        real = _signal.signal
        signal.valid_signals = lambda: valid  # type: ignore[assignment]

        def install(number: int, handler: Any) -> Any:
            if number not in valid:
                raise ValueError("invalid signal value")
            return real(number, handler)

        _signal.signal = install
    sys.addaudithook(_no_proc)
    sys.platform = platform


class _Missing(importlib.abc.MetaPathFinder):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def _no_proc(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith("/proc"):
        raise FileNotFoundError(2, "there is no /proc", arguments[0])
