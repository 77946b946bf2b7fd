"""The reports of a training process to the demo: one JSON object per line on its standard output."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Started:
    """Training begins, or continues after `step`."""

    step: int


@dataclass(frozen=True)
class Stepped:
    """After `step`: the loss of its batch, S, and the last measured test accuracy in percent (NaN: none yet)."""

    step: int
    loss: float
    scale: float
    accuracy: float


@dataclass(frozen=True)
class Finished:
    """All steps are done, with this learning rate or (None) with MECHANIC. The run may have diverged."""

    lr: float | None
    accuracy: float
    loss: float
    scale: float
    seconds: float


Report = Started | Stepped | Finished

_KINDS: dict[str, type[Report]] = {"started": Started, "stepped": Stepped, "finished": Finished}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(report: Report) -> str:
    """A line without its newline. JSON has no NaN and no infinity; they become null."""
    fields = {key: finite(value) for key, value in asdict(report).items()}
    return json.dumps({"report": _NAMES[type(report)], **fields}, allow_nan=False)


def decode(line: str) -> Report:
    """The report in a line. null becomes NaN where a number is expected.

    Raises:
        ValueError: the line holds no report.
    """
    try:
        fields: dict[str, Any] = json.loads(line)
        kind: Callable[..., Report] = _KINDS[fields.pop("report")]
        return kind(**{key: math.nan if value is None and key != "lr" else value for key, value in fields.items()})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"expected a report of a training process, got {line!r}") from None


def write(report: Report) -> None:
    """Sends a report at once. Fails if the demo has ended, so that a training process never outlives it for long."""
    print(encode(report), flush=True)  # noqa: T201


def finite(value: float | None) -> float | None:
    """The value, or None if JSON can't represent it."""
    return value if value is None or math.isfinite(value) else None
