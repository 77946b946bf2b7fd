"""How this process ends: whether it failed, and why. Python does not tell its exit functions.

- An exception that nobody caught is in `sys.last_value`. But so is every error of an interactive session, which goes on after
  it, and what a test runner puts there. Only the one that left the program's outermost frame, where that ended, is the end.
- `sys.exit(1)`, `exit(1)` and `quit(1)` leave no trace, so they are listened to. Only the one that ended the program counts.
- `raise SystemExit(…)`, or a `sys.exit` from before this module was imported, leaves none either. At the top of the program the
  last instruction tells the code, unless it was computed; then the end counts as a success. Raised deeper, it counts as a
  failure: a function that ends the program has found something wrong.
- A child of multiprocessing calls no exit functions but its own, and does so while it handles what the child has raised.
"""

import _sitebuiltins
import dis
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Final

from mechanicd.client._arguments import error_text

_UNKNOWN: Final = object()  # an exit code other than 0
_KINDS: Final = ("RETURN", "LOAD", "CALL")
_EXITS: Final = ("SystemExit", "exit", "quit")
_RETURNS, _LOADS, _CALLS = ({name for name in dis.opmap if name.startswith(kind)} for kind in _KINDS)
_CALLING: Final = ("PUSH_NULL", "PRECALL", "KW_NAMES")
_heard: list[str | None] = []  # what the main thread's last sys.exit says of the end
_watching = False
_finalizing = 0  # the process of multiprocessing that calls `close` at its end


def failure() -> str | None:
    """Why this process fails, for people; None if it does not. Ask at its end."""
    if _program is None:
        return None
    if _program in _stack():  # multiprocessing's exit functions, or somebody runs the exit functions by hand
        return failure_of(sys.exception())
    if dis.opname[_program.f_code.co_code[_program.f_lasti]] in _RETURNS:
        return None
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if isinstance(error, BaseException) and _ended_by(error.__traceback__, _program):
        return error_text(error)
    return _heard[0] if _heard else _of_code(_code(_program))


def failure_of(error: BaseException | None) -> str | None:
    """Why a block that this exception left has failed, for people; None if it has not.

    `sys.exit(0)` is a success here, too, and so is the end of a generator that nobody reads on.
    """
    if isinstance(error, SystemExit):
        return _of_code(error.code)
    return None if error is None or isinstance(error, GeneratorExit) else error_text(error)


def watch(close: Callable[[], None], thread_failed: Callable[[int, str], None]) -> None:
    """Looks out for the end of this process, and of its threads, from now on.

    Args:
        close: called at the end of a child of multiprocessing.
        thread_failed: called when an exception ends a thread, with the thread's ident and the exception in one line.
    """
    global _watching
    _finalize(close)
    if _watching:
        return
    _watching = True
    former = threading.excepthook

    @functools.wraps(former)
    def excepthook(args: Any, /) -> Any:
        if args.thread is not None and args.exc_value is not None and args.exc_type is not SystemExit:
            thread_failed(args.thread.ident, error_text(args.exc_value))
        return former(args)

    threading.excepthook = excepthook


def _listening(leave: Callable[..., Any], at: int = 0) -> Callable[..., Any]:
    """`sys.exit`, or the method behind `exit` and `quit`, with a note of its argument `at`, the code."""

    @functools.wraps(leave)
    def listening(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread():  # elsewhere it ends the thread alone
            given = [*args[at:], *kwargs.values()]
            _heard[:] = [_of_code(given[0] if given else None)]  # the text, since the code may hold a whole training
        return leave(*args, **kwargs)

    return listening


def _finalize(close: Callable[[], None]) -> None:
    global _finalizing
    process, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if process is None or util is None or process.parent_process() is None or _finalizing == util.os.getpid():
        return
    _finalizing = util.os.getpid()
    util.Finalize(None, close, exitpriority=0)


def _of_code(code: object) -> str | None:
    """What an exit code says: as in Python, None and 0 are success, other integers a status, anything else a message."""
    if code is _UNKNOWN:
        return "SystemExit, or another exception, ended the program"
    if code is None or (isinstance(code, int) and code == 0):
        return None
    if isinstance(code, int):
        return f"the process exited with status {int(code)}"
    try:
        return f"the process exited: {code}"
    except Exception:
        return "the process exited with a message that has no text"


def _code(frame: FrameType) -> object:
    """The exit code with which a frame was left, as far as its last instruction tells."""
    instructions = [each for each in dis.get_instructions(frame.f_code) if each.offset <= frame.f_lasti]
    if instructions[-1].opname == "RAISE_VARARGS":
        del instructions[-1]
    last = instructions.pop()
    if last.opname in _LOADS:  # raise SystemExit
        return None if last.argval == "SystemExit" else _UNKNOWN
    if last.opname not in _CALLS or last.positions is None or last.positions.col_offset is None:
        return _UNKNOWN
    # What is called begins where the call does: `sys.exit` in `sys.exit(main())`.
    called = [
        at
        for at, each in enumerate(instructions)
        if each.opname in _LOADS and each.positions is not None and each.positions[::2] == last.positions[::2]
    ]
    if not called or instructions[called[-1]].argval not in _EXITS:
        return _UNKNOWN
    given = [each for each in instructions[called[-1] + 1 :] if each.opname not in _CALLING]
    if len(given) == 1 and given[0].opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
        return given[0].argval
    if len(given) == 1 and given[0].opname in ("LOAD_NAME", "LOAD_GLOBAL"):
        return frame.f_globals.get(given[0].argval)
    return _UNKNOWN if any(each.opname == "BUILD_STRING" for each in given) else None


def _ended_by(traceback: TracebackType | None, frame: FrameType) -> bool:
    """Whether an exception left a frame where the frame ended."""
    while traceback is not None:
        if traceback.tb_frame is frame and traceback.tb_lasti == frame.f_lasti:
            return True
        traceback = traceback.tb_next
    return False


def _stack() -> Iterator[FrameType]:
    """The main thread's frames, the innermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        yield frame
        frame = frame.f_back


# The outermost frame of the module `__main__`. Its last instruction tells how the program ended.
_program: Final = next(reversed([frame for frame in _stack() if frame.f_globals.get("__name__") == "__main__"]), None)

# From the import on: in `sys.exit(main())` the function is looked up before `main` trains.
sys.exit = _listening(sys.exit)
_sitebuiltins.Quitter.__call__ = _listening(_sitebuiltins.Quitter.__call__, at=1)  # type: ignore[method-assign]
