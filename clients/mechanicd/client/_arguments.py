"""Checks what a program passes: every refusal names the argument, and comes before anything has changed.

Texts for people (a message, the command line) are never refused: what can't be sent in them is escaped. Names and keys are.
"""

import contextlib
import math
import operator
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mechanicd.client._errors import InvalidArgument
from mechanicd.tuner import TunerConfig, TunerState
from mechanicd.v1 import names

STATUSES: Final = ("finished", "failed", "preempted")
MOST_SECONDS: Final = 1e6
_MOST_STEPS: Final = 2**62
_WORD: Final = re.compile(r"""[^\s'"]+""")
_TOKEN: Final = re.compile(r"(mech_[a-z0-9]{12})_[A-Za-z0-9_-]{20,}")
_USER: Final = re.compile(r"(?:[^:]|:(?=//))*(?=:)")


def real(setting: str, value: object, expected: str = "a number") -> float:
    """A real number as a float, NaN and infinities too: a Python number, or a NumPy or torch scalar.

    Raises:
        InvalidArgument: INVALID_SETTING.
    """
    if type(value) is float:
        return value
    if not isinstance(value, (bool, str, bytes, bytearray)):
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            return float(value)  # type: ignore[arg-type]
    raise InvalidArgument("INVALID_SETTING", f"{setting}={value!r}; give {expected}")


def number(setting: str, value: object, low: float, high: float, expected: str) -> float:
    """A real number from `low` to `high` as a float. Raises InvalidArgument INVALID_SETTING."""
    found = real(setting, value, expected)
    if not low <= found <= high:
        raise InvalidArgument("INVALID_SETTING", f"{setting}={value!r}; give {expected}")
    return found


def deadline(value: object) -> float:
    """Seconds that a step may wait. Raises InvalidArgument INVALID_SETTING."""
    return number("deadline", value, 0.0, MOST_SECONDS, f"a number of seconds from 0 to {MOST_SECONDS:,.0f}")


def timeout(value: object, default: float) -> float:
    """Seconds that a call may wait; infinity and None are allowed. Raises InvalidArgument INVALID_SETTING."""
    if value is None:
        return default
    return max(0.0, min(number("timeout", value, -math.inf, math.inf, "a number of seconds, or None"), MOST_SECONDS))


def cap(value: object, least: float = math.ulp(0.0)) -> float | None:
    """`max_scale`, from `least` on. Raises InvalidArgument INVALID_SETTING."""
    expected = f"a number {'above' if least else 'from'} 0{'' if least else ' on'}, or None for no cap"
    return None if value is None else number("max_scale", value, least, math.inf, expected)


def flag(setting: str, value: object) -> bool:
    """True or False, also those of NumPy and torch. Raises InvalidArgument INVALID_SETTING."""
    if value is True or value is False:
        return value
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        if value in (True, False):
            return bool(value)
    raise InvalidArgument("INVALID_SETTING", f"{setting}={value!r}; give True or False")


def config(value: object) -> TunerConfig:
    """The tuner's settings; None means the defaults. Raises InvalidArgument INVALID_CONFIG."""
    if value is None:
        return TunerConfig()
    if not isinstance(value, TunerConfig):
        raise InvalidArgument("INVALID_CONFIG", f"config={value!r}; give a TunerConfig, or None for the defaults")
    return value


def labels(value: Mapping[str, str] | None) -> dict[str, str]:
    """The labels as a dict; None means none. Raises InvalidArgument INVALID_LABELS."""
    try:
        return {} if value is None else names.check_labels(value)
    except names.MalformedName as error:
        raise InvalidArgument(error.reason, str(error)) from None


def start(value: object) -> int | TunerState | None:
    """Where training starts. Raises InvalidArgument INVALID_SETTING."""
    if value is None or isinstance(value, TunerState):
        return value
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            step = operator.index(value)  # type: ignore[arg-type]
            if 0 <= step <= _MOST_STEPS:
                return step
    raise InvalidArgument(
        "INVALID_SETTING",
        f"start={value!r}; give 0 to start from scratch, a step that the server has, a checkpoint's TunerState, or None",
    )


def spill(value: object) -> Path | None:
    """The folder of a spill; None takes MECHANICD_SPILL from the environment. Raises InvalidArgument INVALID_SETTING."""
    given = os.environ.get("MECHANICD_SPILL") if value is None else value
    if given is None or given == "":
        return None
    if not isinstance(given, str | os.PathLike) or not isinstance(path := os.fspath(given), str) or "\0" in path:
        raise InvalidArgument("INVALID_SETTING", f"spill={given!r}; give the path of a folder, or None")
    return Path(path).absolute()


def status(value: object) -> None:
    """Refuses a status that no run is closed with. Raises InvalidArgument INVALID_STATUS."""
    if value is not None and value not in STATUSES:
        raise InvalidArgument("INVALID_STATUS", f"status={value!r}; choose one of {', '.join(STATUSES)}")


def text(value: object, most: int) -> str:
    """Text for people, without the secrets of tokens, cut to `most` characters. Bytes of a file name or an argument that are no
    UTF-8, which Python keeps as lone surrogates, become backslash escapes."""
    return _without_tokens("" if value is None else _said(value))[:most].encode("utf-8", "backslashreplace").decode()[:most]


def error_text(found: BaseException) -> str:
    """An exception's type and text, also of one that has no text to give."""
    return f"{type(found).__name__}: {_without_tokens(_said(found))}"


def without_secrets(told: str) -> str:
    """The text with *** for the secret of each token, and for each password before an @, as in postgresql://me:***@host/runs."""

    def hidden(word: re.Match[str]) -> str:
        login, at, place = word[0].rpartition("@")
        user = _USER.match(login) if at else None
        return f"{user[0]}:***@{place}" if user else word[0]

    return _without_tokens(_WORD.sub(hidden, told))


def _without_tokens(told: str) -> str:
    return _TOKEN.sub(r"\1_***", told)


def _said(value: object) -> str:
    try:
        return str(value)
    except Exception as failure:  # the user's own __str__: what is told about an error must not be a second one
        return f"({type(value).__name__} has no text: its __str__ raised {type(failure).__name__})"
