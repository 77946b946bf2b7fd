"""Stdin, stdout and stderr as they come: of any encoding, with a reader that leaves, on a full disk, or not there at all."""

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal, NoReturn, TextIO

from mechanicd.cli._output import fail

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
READER_LEFT: Final = 128 + 13
"""The exit code of a program that SIGPIPE ends, as shells give it: whoever read stdout has left, as in `… | head -1`."""
_PLAIN: Final = {
    **dict(zip("▁▂▃▄▅▆▇█", "_.,-~=*#", strict=True)),
    "…": "...",
    "–": "-",
    "—": "-",
    "×": "x",
    "÷": "/",
    "·": "*",
    "±": "+-",
    "≠": "!=",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "∞": "inf",
    "→": "->",
    "←": "<-",
    "↑": "^",
    "↓": "v",
    "Δ": "Delta",
    "β": "beta",
    "λ": "lambda",
    "Σ": "sum",
    "√": "sqrt",
    "‖": "|",
    "⟨": "<",
    "⟩": ">",
    "²": "^2",
    "„": '"',
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "─": "-",
    "│": "|",
}
"""The characters of this program's own texts in ASCII."""


@contextmanager
def any_streams() -> Iterator[None]:
    """Around the whole program: what it prints is either written or missed by name.

    A character that a stream's encoding lacks is replaced by ASCII or escaped, and so is a byte that is no text.

    Raises:
        SystemExit: `READER_LEFT`, without a word, where the reader of stdout has left; 1 with OUTPUT_FAILED, where stdout
            can't be written.
    """
    sys.stdin, sys.stdout, sys.stderr = _there(sys.stdin, "r"), _there(sys.stdout, "w"), _there(sys.stderr, "w")
    _set_errors(sys.stdin, "replace")
    _set_errors(sys.stdout, _HANDLER)
    _set_errors(sys.stderr, _HANDLER)
    out = sys.stdout
    try:
        yield
    except BaseException as error:
        left = isinstance(error, BrokenPipeError) or sys.stdout is not out  # click replaces it, and exits with 1
        failure = BrokenPipeError() if left else _flush(out)
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            failure = error
        if failure is None:
            raise
        forget(out)
        if isinstance(error, SystemExit) and error.code and not left:
            raise
        _end(failure)
    failure = _flush(out)
    if failure is not None:
        forget(out)
        _end(failure)


def forget(out: TextIO) -> None:
    """What is still to be written to a stream goes nowhere: it can't be written, and the end of the process would try again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)


def _there(stream: TextIO | None, mode: Literal["r", "w"]) -> TextIO:
    """The stream, or nothing in its place where whoever started the program has closed it."""
    return stream or open(os.devnull, mode, encoding="utf-8")


def _flush(out: TextIO) -> OSError | None:
    try:
        out.flush()
    except OSError as error:
        return error
    except ValueError:  # it is closed
        pass
    return None


def _end(failure: OSError) -> NoReturn:
    if isinstance(failure, BrokenPipeError):
        raise SystemExit(READER_LEFT) from None
    fail("OUTPUT_FAILED", f"the output can't be written ({failure.strerror}), so it is not complete; write it elsewhere")


# --- encodings ----------------------------------------------------------------------------------------------------------

_HANDLER: Final = "mechanicd.plain"
_ASCII: Final = "mechanicd_ascii"
"""ASCII under another name: click writes UTF-8 to a stream whose encoding is called ASCII."""


def _set_errors(stream: TextIO, errors: str) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is None:  # a stand-in, such as a StringIO
        return
    ascii_ = stream is not sys.stdin and codecs.lookup(stream.encoding).name == "ascii"
    reconfigure(encoding=_ASCII if ascii_ else None, errors=errors)


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or ascii(each)[1:-1] for each in missing), error.end


def _find(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(
        found.encode,
        found.decode,
        found.streamreader,
        found.streamwriter,
        found.incrementalencoder,
        found.incrementaldecoder,
        name=_ASCII,
    )


codecs.register_error(_HANDLER, _in_plain)
codecs.register(_find)
