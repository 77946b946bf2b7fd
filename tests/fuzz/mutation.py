"""Inputs: texts and bytes that are nearly right, and messages of the contract drawn from their descriptors."""

import struct
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

CHARACTERS: Final = (
    *"\0\t\n\r\x1b\x7f \"'\\/%&?#@:;,.=<>!()[]{}+-_*$0z",
    *"\x85\u00a0\u2028\u202e\ufeff\ufffd",  # ends of lines, spaces, directions
    *"éßſİıΣſ١²½Ⅷ",  # letters that change their length with their case, and digits that are none
    *"😀𝟙\u0301\u200d",
    *"\ud800\udcff",  # what bytes that are no UTF-8 become
)
WHOLE: Final = (
    0,
    1,
    2,
    3,
    7,
    16,
    63,
    64,
    65,
    255,
    256,
    1000,
    1024,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
)
REAL: Final = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 1e-8, 1e-300, 5e-324, 1e300, -1e300, 1.7976931348623157e308, 1e154, 1e16),
    *(float("nan"), float("inf"), float("-inf")),
)
_LONG: Final = 20
"""Of a few hundred inputs one is long: what takes more than linear time shows."""


def text(rng: Random, seeds: Sequence[str], words: Sequence[str] = ()) -> str:
    """A text near one of `seeds`, or made of `words`."""
    made = rng.choice(seeds) if rng.random() < 0.8 or not words else " ".join(rng.choices(words, k=rng.randint(1, 8)))
    for _ in range(rng.randrange(4)):
        at, width = rng.randint(0, len(made)), rng.randrange(1, 9)
        piece = rng.choice(words) if words and rng.random() < 0.5 else rng.choice(CHARACTERS)
        match rng.randrange(6):
            case 0:
                made = made[:at] + piece + made[at:]
            case 1:
                made = made[:at] + piece + made[at + width :]
            case 2:
                made = made[:at] + made[at + width :]
            case 3:
                made = made[: at + width] + made[at:]
            case 4:
                other = rng.choice(seeds)
                made = made[:at] + other[rng.randint(0, len(other)) :]
            case 5 if rng.randrange(_LONG) == 0:
                made = (
                    made[:at] + (made[at : at + width] or piece)[: rng.choice((1, 1, 2, 8))] * rng.randrange(20_000) + made[at:]
                )
    return made


def data(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Bytes near one of `seeds`."""
    made = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        at = rng.randint(0, len(made))
        match rng.randrange(7):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(made):
                made[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                form, value = rng.choice((("<I", 2**32 - 1), ("<Q", 2**64 - 1), ("<H", 2**16 - 1), ("<I", 0)))
                piece = struct.pack(form, rng.choice((value, rng.choice(WHOLE) & value)))
                made[at : at + len(piece)] = piece
            case 3:
                made[at : at + 8] = struct.pack("<d", rng.choice(REAL))
            case 4:
                del made[at : at + rng.randrange(1, 64)]
            case 5:
                made[at:at] = made[at : at + rng.randrange(1, 64)] or rng.randbytes(4)
            case 6:
                made[at:] = (other := rng.choice(seeds))[rng.randint(0, len(other)) :]
    return bytes(made)


def whole(rng: Random, bits: int, signed: bool) -> int:
    """A number of a field: near an edge, small, or any."""
    value = rng.choice((rng.choice(WHOLE) + rng.randint(-1, 1), rng.randrange(6), rng.getrandbits(bits)))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return min(high, max(low, -value if signed and rng.random() < 0.2 else value))


def real(rng: Random) -> float:
    """A float64, often one of the edges."""
    return rng.choice(REAL) if rng.random() < 0.3 else rng.gauss(0.0, 10.0 ** rng.randint(-6, 6))


Hints = Mapping[str, Callable[[Random], Any]]
"""What fits a field, by its name; a list for a repeated one."""

_BITS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
}


def message(rng: Random, described: Descriptor, hints: Hints, depth: int = 0) -> Any:
    """A message with each of its fields unset, fitting, or anything of its type."""
    made: Any = GetMessageClass(described)()
    for field in described.fields:
        fits = hints.get(field.name) if rng.random() < 0.9 else None
        if rng.random() < (0.1 if fits else 0.3) + 0.2 * depth:
            continue
        if _is_map(field):
            _fill_map(rng, getattr(made, field.name), field, fits)
        elif _is_repeated(field):
            _fill(rng, getattr(made, field.name), field, hints, fits, depth)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            if depth < 4:
                getattr(made, field.name).CopyFrom(message(rng, field.message_type, hints, depth + 1))
        else:
            setattr(made, field.name, _value(rng, field, fits))
    return made


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(getattr(field, "is_repeated", None) or getattr(field, "label", 0) == 3)


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _fill(rng: Random, into: Any, field: FieldDescriptor, hints: Hints, fits: Any, depth: int) -> None:
    if fits is not None and field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        into.extend(fits(rng))
        return
    count = rng.randrange(2_000) if rng.randrange(_LONG) == 0 and depth < 2 else rng.randrange(4)
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        into.extend([message(rng, field.message_type, hints, depth + 1) for _ in range(count)])
    else:
        into.extend([_value(rng, field, None) for _ in range(count)])


def _fill_map(rng: Random, into: Any, field: FieldDescriptor, fits: Any) -> None:
    if fits is not None:
        into.update(fits(rng))
        return
    key, value = field.message_type.fields
    for _ in range(rng.randrange(4)):
        into[_value(rng, key, None)] = _value(rng, value, None)


def _value(rng: Random, field: FieldDescriptor, fits: Callable[[Random], Any] | None) -> Any:
    if fits is not None:
        return fits(rng)
    kind = field.cpp_type
    if kind in _BITS:
        return whole(rng, *_BITS[kind])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return real(rng)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((*field.enum_type.values_by_number, 99, -1))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 8, 200)))
    return unicode(text(rng, ("", "a", "a/b", "projects/p/runs/r", "x" * 63, "é" * 300)))


def unicode(given: str) -> str:
    """The text as protobuf takes it."""
    return given.encode("utf-8", "replace").decode()
