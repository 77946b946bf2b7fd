"""List filters: comparisons joined by AND, in the style of AIP-160. Pure."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from mechanicd.runs._alerts import Alert
from mechanicd.runs._model import RunRow
from mechanicd.runs._values import AlertKind
from mechanicd.v1 import names

_COMPARISON: Final = re.compile(
    r"""\s*(?P<field>labels\.[A-Za-z0-9][A-Za-z0-9._-]*|[a-z_]+)\s*
        (?P<operator>!=|<=|>=|=|<|>|:)\s*
        (?P<value>"(?:[^"\\]|\\.)*"|[^\s"]+)\s*""",
    re.VERBOSE,
)
MAX_FILTER: Final = 10_000
"""The most characters of a filter."""
MAX_COMPARISONS: Final = 100
"""The most comparisons of a filter: a list makes each of them for every run."""
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS: Final = ("nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")
_AND: Final = re.compile(r"AND\b")
_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FRAME: Final = re.compile("projects/|/runs|runs/")
"""What each full name has, beside the words that people chose."""
_SHOWN: Final = 300
_TEXT_FIELDS: Final = {"name", "status"}
_NUMBER_FIELDS: Final = {"step", "scale"}


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class FilterError(ValueError):
    """A filter that can't be parsed, with its text and the position of the error."""

    def __init__(self, text: str, position: int, what: str) -> None:
        super().__init__(f"filter {_short(text)!r}, at character {position}: {what}")
        self.text = text
        self.position = position


class Comparison(NamedTuple):
    """One comparison of a filter."""

    field: str
    operator: str
    value: str

    def __call__(self, row: RunRow, alerts: Sequence[Alert] = ()) -> bool:
        """Whether the run matches. A run without the label matches only `!=`."""
        if self.field == "archived":
            return self.value == "*" or (bool(row.archive_time) is (self.value == "true")) is (self.operator == "=")
        if self.field == "needs":
            return any(self.value in (alert.kind, "*") for alert in alerts)
        if self.field in _NUMBER_FIELDS:
            have = float(row.last_step) if self.field == "step" else max(row.scale)
            return _OPERATORS[self.operator](have, float(self.value))
        text = self._text(row)
        if text is None:
            return self.operator == "!="
        if self.operator == ":":
            return self.value in text
        return _OPERATORS[self.operator](text, self.value)

    def _text(self, row: RunRow) -> str | None:
        if self.field == "name":
            if self.operator == ":" and not _FRAME.search(self.value):
                return f"{row.project}/{row.run}"  # nobody who looks for "run" means all runs
            return str(names.RunName(row.project, row.run))
        if self.field == "status":
            return row.status.upper()
        return row.labels.get(self.field.removeprefix("labels."))


class Filter(NamedTuple):
    """A predicate over runs and their alerts. Unless it names `archived`, archived runs do not match."""

    comparisons: tuple[Comparison, ...]

    def __call__(self, row: RunRow, alerts: Sequence[Alert] = ()) -> bool:
        """Whether the run matches every comparison."""
        if row.archive_time and all(comparison.field != "archived" for comparison in self.comparisons):
            return False
        return all(comparison(row, alerts) for comparison in self.comparisons)


def parse_filter(text: str) -> Filter:
    """A predicate; an empty filter matches all runs that are not archived.

    Raises:
        FilterError
    """
    if len(text) > MAX_FILTER:
        raise FilterError(text, 0, f"it has {len(text):,} characters; a filter has at most {MAX_FILTER:,}")
    comparisons: list[Comparison] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        if len(comparisons) == MAX_COMPARISONS:
            raise FilterError(text, position, f"a filter has at most {MAX_COMPARISONS} comparisons")
        if comparisons:
            joined = _AND.match(text, position)
            if joined is None:
                raise FilterError(text, position, "expected AND")
            position = joined.end()
        match = _COMPARISON.match(text, position)
        if match is None:
            raise FilterError(text, position, 'expected FIELD OPERATOR VALUE, as in labels.batch = "256"')
        comparisons.append(_checked(text, match))
        position = match.end()
    return Filter(tuple(comparisons))


def _checked(text: str, match: re.Match[str]) -> Comparison:
    field, operator_, value = match["field"], match["operator"], match["value"]
    if value.startswith('"'):
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    if field in _NUMBER_FIELDS:
        if value.lower() not in _WORDS and not (_NUMBER.fullmatch(value) and math.isfinite(float(value))):
            raise FilterError(text, match.start("value"), f"expected a number to compare {field} with, got {_short(value)!r}")
        if operator_ == ":":
            raise FilterError(text, match.start("operator"), f"{field} is a number; ':' is for text")
    elif field == "needs":
        value = value.lower()
        if operator_ != ":":
            raise FilterError(text, match.start("operator"), "needs is a list; use ':' to match one kind, as in needs : stuck")
        if value not in (*AlertKind, "*"):
            raise FilterError(
                text, match.start("value"), f"unknown alert {value!r}; choose one of {', '.join(AlertKind)}, or * for any"
            )
    elif field == "archived":
        value = value.lower()
        if (operator_, value) != (":", "*") and (operator_ not in ("=", "!=") or value not in ("true", "false")):
            what = "write archived = true, archived = false, or archived : * for all runs"
            raise FilterError(text, match.start("operator"), what)
    elif field == "status":
        value = value.upper()
    elif field not in _TEXT_FIELDS and not field.startswith("labels."):
        raise FilterError(
            text,
            match.start("field"),
            f"unknown field {field!r}; choose one of name, status, step, scale, needs, labels.KEY, archived",
        )
    return Comparison(field, operator_, value)
