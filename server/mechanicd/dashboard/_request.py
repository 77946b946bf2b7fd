"""Parses and checks requests: JSON bodies and query strings into frozen values. Pure."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

from mechanicd.dashboard._errors import ApiError
from mechanicd.dashboard._series import SERIES, X_AXES, XAxis
from mechanicd.runs import EXPORT_FORMATS

MOST_RUNS: Final = 200
MOST_SPARKLINES: Final = 100
MOST_GROUPS: Final = 50
MOST_BANDED: Final = 2000
MOST_COLUMNS: Final = 8192
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
"""Not all that Python's float takes: no digits of other scripts, no 1_000, no "infinity"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRequest:
    """POST /series: at most `columns` columns of a series of some runs, between x0 and x1."""

    runs: tuple[str, ...]
    series: str = "S"
    group: int | None = None
    branch: int = 0
    x: XAxis = "step"
    x0: float | None = None
    x1: float | None = None
    columns: int = 1000

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Raises ApiError MALFORMED_REQUEST, INVALID_RANGE."""
        fields = _Fields.of_body(body)
        group = fields.integer("group", None, 0, 2**31)
        branch = fields.integer("branch", 0, 0, 2**31)
        request = cls(
            runs=fields.texts("runs", MOST_RUNS), **_where(fields), group=group, branch=branch or 0, columns=_columns(fields)
        )
        fields.end()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class BandsRequest:
    """POST /bands: quantiles over the runs of each group, at `one.columns` points of the x axis."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    one: SeriesRequest
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Raises ApiError MALFORMED_REQUEST, INVALID_RANGE."""
        fields = _Fields.of_body(body)
        groups = []
        for entry in fields.list("groups", MOST_GROUPS):
            inner = _Fields(entry)
            groups.append((inner.text("label", ""), inner.texts("runs", MOST_BANDED)))
            inner.end()
        if sum(len(runs) for _, runs in groups) > MOST_BANDED:
            raise ApiError("MALFORMED_REQUEST", f"the groups have more than {MOST_BANDED} runs in total; ask for fewer")
        columns = fields.integer("columns", 200, 1, MOST_COLUMNS)
        one = SeriesRequest(runs=(), **_where(fields), columns=columns or 200)
        quantiles = fields.take("quantiles", [0.1, 0.5, 0.9])
        if not isinstance(quantiles, list) or not all(_is_number(q) and 0 <= q <= 1 for q in quantiles) or len(quantiles) > 20:
            raise ApiError("MALFORMED_REQUEST", f"quantiles {_short(quantiles)}: expected at most 20 numbers in [0, 1]")
        fields.end()
        return cls(groups=tuple(groups), one=one, quantiles=tuple(map(float, quantiles)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatRequest:
    """GET /heatmap: S of each scale group from step x0 to x1."""

    run: str
    branch: int = 0
    x0: float | None = None
    x1: float | None = None
    columns: int = 300

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """Raises ApiError MALFORMED_REQUEST, INVALID_RANGE."""
        fields = _Fields({key: value for key, value in query.items() if value != ""})
        x0, x1 = _range(fields.parsed("x0"), fields.parsed("x1"))
        request = cls(
            run=fields.text("run"),
            branch=fields.parsed_integer("branch", 0, 0, 2**31),
            x0=x0,
            x1=x1,
            columns=fields.parsed_integer("columns", 300, 1, MOST_COLUMNS),
        )
        fields.end()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """GET /export: the exact steps x0 to x1."""

    run: str
    format: str = "csv"
    branch: int = 0
    x0: float | None = None
    x1: float | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """Raises ApiError MALFORMED_REQUEST, INVALID_RANGE."""
        fields = _Fields({key: value for key, value in query.items() if value != ""})
        x0, x1 = _range(fields.parsed("x0"), fields.parsed("x1"))
        branch = fields.parsed_integer("branch", 0, 0, 2**31)
        request = cls(
            run=fields.text("run"), format=fields.choice("format", "csv", EXPORT_FORMATS), branch=branch, x0=x0, x1=x1
        )
        fields.end()
        return request


def token_of(body: bytes) -> str:
    """POST /login: the token's text. Raises ApiError MALFORMED_REQUEST, which does not repeat what came."""
    try:
        fields = _Fields.of_body(body)
        token = fields.text("token")
        fields.end()
    except ApiError:
        raise ApiError("MALFORMED_REQUEST", 'expected {"token": "mech_…"}') from None
    return token


def _where(fields: "_Fields") -> dict[str, Any]:
    x0, x1 = _range(fields.number("x0"), fields.number("x1"))
    return {"series": fields.choice("series", "S", SERIES), "x": fields.choice("x", "step", X_AXES), "x0": x0, "x1": x1}


def _columns(fields: "_Fields") -> int:
    """`columns`, or `pixels`, its deprecated name from version 0.1."""
    old = fields.integer("pixels", None, 1, MOST_COLUMNS)
    new = fields.integer("columns", None, 1, MOST_COLUMNS)
    if old is not None and new is not None:
        raise ApiError("MALFORMED_REQUEST", "got both columns and pixels, its old name; send only columns")
    return new or old or 1000


def _range(x0: float | None, x1: float | None) -> tuple[float | None, float | None]:
    if x0 is not None and x1 is not None and x0 > x1:
        raise ApiError("INVALID_RANGE", f"x0 {x0:g} is above x1 {x1:g}")
    return x0, x1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _Fields:
    """The fields of an object. Each is taken once and type-checked; `end` refuses what is left."""

    def __init__(self, given: Any) -> None:
        if not isinstance(given, Mapping):
            raise ApiError("MALFORMED_REQUEST", f"expected a JSON object, got {_short(given)}")
        self._left: dict[str, Any] = dict(given)

    @classmethod
    def of_body(cls, body: bytes) -> Self:
        try:
            return cls(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            raise ApiError("MALFORMED_REQUEST", f"the body is not valid JSON: {error}") from None

    def end(self) -> None:
        if self._left:
            raise ApiError("MALFORMED_REQUEST", f"unknown fields {', '.join(sorted(map(_short, list(self._left)[:10])))}")

    def take(self, name: str, default: Any) -> Any:
        return self._left.pop(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        value = self.take(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def choice(self, name: str, default: str, choices: Sequence[str] | Mapping[str, Any]) -> Any:
        value = self.text(name, default)
        if value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return value

    def list(self, name: str, most: int) -> Sequence[Any]:
        value = self.take(name, None)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, value, f"a list of at most {most}")
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        value = self.list(name, most)
        if not all(isinstance(entry, str) for entry in value):
            raise self._wrong(name, value, "a list of strings")
        return tuple(dict.fromkeys(value))

    def number(self, name: str) -> float | None:
        value = self.take(name, None)
        if value is not None and not _is_number(value):
            raise self._wrong(name, value, "a finite number or null")
        return None if value is None else float(value)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.take(name, default)
        if value is None:
            return default
        if not _is_number(value) or value != int(value) or not low <= value <= high:
            raise self._wrong(name, value, f"a whole number from {low} to {high}")
        return int(value)

    def parsed(self, name: str) -> float | None:
        value = self.take(name, None)
        if value is None:
            return None
        number = _parsed(value)
        if not math.isfinite(number):
            raise self._wrong(name, value, "a number")
        return number

    def parsed_integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.take(name, None)
        if value is None:
            return default
        number = _parsed(value)
        if not low <= number <= high or number != int(number):
            raise self._wrong(name, value, f"a whole number from {low} to {high}")
        return int(number)

    @staticmethod
    def _wrong(name: str, value: Any, expected: str) -> ApiError:
        return ApiError("MALFORMED_REQUEST", f"{name} {_short(value)}: expected {expected}")


def _parsed(text: str) -> float:
    """The number that a query string names, as JSON writes it; NaN if it names none."""
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}…"
