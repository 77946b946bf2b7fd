"""The tuner's state between two steps, and its versioned binary form."""

import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from mechanicd.tuner._config import TunerConfig
from mechanicd.tuner._conventions import CONVENTIONS
from mechanicd.tuner._errors import InvalidArgument
from mechanicd.tuner._rules import Row, scale

if TYPE_CHECKING:
    from mechanicd.tuner._rules_numpy import Table

NUMPY_FROM: Final = 32
"""From this many scale groups on, numpy across groups beats plain floats (where numpy is installed)."""

_MAGIC: Final = b"MTNR"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBxHIQ")  # magic, version, n, G, step
_CRC: Final = struct.Struct("<I")


class StateError(InvalidArgument):
    """Bytes that are not a tuner state of this config."""

    reason = "INVALID_TUNER_STATE"

    def __init__(self, message: str) -> None:
        super().__init__(self.reason, message)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message,))


@dataclass(frozen=True, slots=True, eq=False)
class TunerState:
    """What the tuner knows after `step` steps. Immutable; two states are equal if their bytes are.

    Attributes:
        step: how many steps it has taken, t.
        scale: S_{t+1} per scale group, float64, dimensionless; finite and ≥ 0.
        table: m, v, r, s, q of each group: a tuple of G rows of n floats, or, for many groups, arrays of shape (n, G).
    """

    step: int
    scale: tuple[float, ...]
    table: "tuple[Row, ...] | Table"

    @property
    def rows(self) -> tuple[Row, ...]:
        """m, v, r, s, q of each scale group as plain floats, whatever form the table has."""
        if isinstance(self.table, tuple) and self.table and isinstance(self.table[0], Row):
            return self.table
        from mechanicd.tuner import _rules_numpy

        return _rules_numpy.to_rows(self.table)  # type: ignore[arg-type]

    @property
    def is_wide(self) -> bool:
        """Whether the table has arrays, as it does for many scale groups."""
        return not isinstance(self.table[0], Row)

    @classmethod
    def initial(cls, config: TunerConfig) -> Self:
        """The state before the first step."""
        row, groups = CONVENTIONS[config.convention].initial_row(config), len(config.scale_groups)
        if groups >= NUMPY_FROM:
            try:
                from mechanicd.tuner import _rules_numpy
            except ModuleNotFoundError:
                pass
            else:
                return cls(0, (scale(row.s),) * groups, _rules_numpy.repeated(row, groups))
        return cls.from_rows(0, (row,) * groups)

    @classmethod
    def from_rows(cls, step: int, rows: tuple[Row, ...]) -> Self:
        """A state from plain floats; it takes the form that is fastest for its number of groups."""
        totals = tuple(scale(row.s) for row in rows)
        if len(rows) >= NUMPY_FROM:
            try:
                from mechanicd.tuner import _rules_numpy
            except ModuleNotFoundError:  # the base install has no numpy: floats give the same bits, slower
                return cls(step, totals, rows)
            return cls(step, totals, _rules_numpy.from_rows(rows))
        return cls(step, totals, rows)

    def grown(self, config: TunerConfig, larger: TunerConfig) -> Self:
        """The same state with more scale groups: each old one keeps what it has, a new one is as before the first step.

        Args:
            config: the config of this state.
            larger: the same with further names in `scale_groups`, in any order.
        """
        known = dict(zip(config.scale_groups, self.rows, strict=True))
        new = CONVENTIONS[larger.convention].initial_row(larger)
        return type(self).from_rows(self.step, tuple(known.get(name, new) for name in larger.scale_groups))

    def to_bytes(self) -> bytes:
        """The versioned binary form, little-endian: header, then m v r s q per group as float64, then a CRC-32."""
        first = self.table[0]
        n = len(first.m if isinstance(first, Row) else first)
        head = _HEADER.pack(_MAGIC, _VERSION, n, len(self.scale), self.step)
        if isinstance(first, Row):
            values = [value for row in self.rows for field in row for value in field]
            body = head + struct.pack(f"<{len(values)}d", *values)
            return body + _CRC.pack(zlib.crc32(body))
        from mechanicd.tuner import _rules_numpy

        # In place: a state of many groups has megabytes, and while they are copied no other thread of Python's runs.
        data = bytearray(len(head) + 8 * len(Row._fields) * n * len(self.scale) + _CRC.size)
        data[: len(head)] = head
        _rules_numpy.write(self.table, data, len(head))  # type: ignore[arg-type]
        with memoryview(data) as whole, whole[: -_CRC.size] as body_:
            _CRC.pack_into(data, len(data) - _CRC.size, zlib.crc32(body_))
        return bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes, config: TunerConfig | None) -> Self:
        """The inverse of `to_bytes`; exact.

        Args:
            config: the config that the state was made with; None takes a state of any shape.

        Raises:
            StateError: foreign or damaged bytes, a newer version, another shape than the config's, or impossible values.
        """
        if len(data) < _HEADER.size + _CRC.size or data[:4] != _MAGIC:
            raise StateError(f"got {len(data)} bytes that are not a tuner state; pass what TunerState.to_bytes() returned")
        _, version, n, groups, step = _HEADER.unpack_from(data)
        if version > _VERSION:
            raise StateError(
                f"the tuner state has version {version}, but this program reads up to {_VERSION}; upgrade mechanicd"
            )
        body, crc = data[: -_CRC.size], data[-_CRC.size :]
        if _CRC.pack(zlib.crc32(body)) != crc:
            raise StateError("the tuner state's checksum does not match: its bytes are damaged; use an older checkpoint")
        if not n or not groups:
            raise StateError(
                f"the tuner state has {groups} scale groups × {n} betas, which is not possible; use an older checkpoint"
            )
        if config is not None and (n, groups) != (len(config.betas), len(config.scale_groups)):
            raise StateError(
                f"the tuner state has {groups} scale groups × {n} betas, but the config has "
                f"{len(config.scale_groups)} × {len(config.betas)}; resume with the config that the state was made with"
            )
        if len(body) != _HEADER.size + 8 * len(Row._fields) * n * groups:
            raise StateError(f"the tuner state has {len(data)} bytes, which does not fit its shape; use an older checkpoint")
        if groups >= NUMPY_FROM and (state := cls._from_arrays(step, body[_HEADER.size :], n, groups)) is not None:
            return state
        values = struct.unpack_from(f"<{len(Row._fields) * n * groups}d", body, _HEADER.size)
        _check_values(values, n)
        width = len(Row._fields) * n
        rows = tuple(
            Row(*(values[start + i * n : start + (i + 1) * n] for i in range(len(Row._fields))))
            for start in range(0, groups * width, width)
        )
        return cls.from_rows(step, rows)

    @classmethod
    def _from_arrays(cls, step: int, data: bytes, n: int, groups: int) -> Self | None:
        """A state of many groups; None without numpy, or where a value is impossible."""
        try:
            from mechanicd.tuner import _rules_numpy
        except ModuleNotFoundError:
            return None
        table = _rules_numpy.from_bytes(data, n, groups)
        return None if table is None else cls(step, tuple(_rules_numpy.scale(table.s).tolist()), table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TunerState) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __reduce__(self) -> tuple[object, ...]:
        return (TunerState.from_rows, (self.step, self.rows))


def _check_values(values: tuple[float, ...], n: int) -> None:
    fields = Row._fields
    for index, value in enumerate(values):
        field = fields[index // n % len(fields)]
        if not math.isfinite(value) or (value < 0.0 and field in ("m", "v", "s")):
            raise StateError(f"the tuner state has {field} = {value!r}, which is not possible; use an older checkpoint")
