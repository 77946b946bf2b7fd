"""What a rank holds, in a few hundred bytes, so that the ranks can tell before the first step whether they train one model.

Ranks that hold the same piece of a model (a parameter that is not sharded, or the same shard of a DTensor) must hold the same
weights, bit for bit, and gradients of the same size; where a gradient is added up in no fixed order, its last bits may differ.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

ANY: Final = "any"
"""The value of a setting for which rank 0's will do."""

_BUCKETS: Final = 8
"""‖g‖² of a piece comes as so many sums, over every eighth tensor."""

_SAME: Final = 1e-3
"""Relative difference of a gradient's norm up to which two ranks hold the same one."""

_CHUNK: Final = 1 << 24
"""Elements at a time: torch makes a copy in the wider dtype to add them up."""

_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Piece:
    """What a rank holds of a piece of the model.

    Attributes:
        weights: digest of the bits.
        gradients: digest of the bits, and of which tensors have one.
        with_gradient: how many tensors have one.
        g_norm_sq: ‖g‖² of the piece, as `_BUCKETS` sums.
    """

    weights: str
    gradients: str
    with_gradient: int
    g_norm_sq: list[float]


@dataclass(frozen=True)
class Fingerprint:
    """What a rank holds.

    Attributes:
        settings: what all ranks must share, by name.
        layout: digest of the tensors' shapes, dtypes and placements.
        pieces: by name, the pieces of the model that it holds.
        params: digest of each parameter with its gradient; None where that is 0 or missing. Only where the ranks hold parts.
        whole: digest of all that it holds.
    """

    settings: dict[str, str]
    layout: str
    pieces: dict[str, Piece]
    params: list[str | None]
    whole: str = ""

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> "Fingerprint":
        """The inverse of `dumps`."""
        fields = json.loads(text)
        return Fingerprint(**{**fields, "pieces": {name: Piece(**piece) for name, piece in fields["pieces"].items()}})


@torch.no_grad()
def take(params: Sequence[Tensor], settings: Mapping[str, object], parts: bool) -> Fingerprint:
    """The fingerprint of what this rank holds; one read of its weights and gradients.

    Args:
        params: the parameters, in BASE's order.
        settings: what all ranks must share.
        parts: whether the ranks hold different parts of the model.
    """
    numbers = _measure(params)
    layouts = [_layout(p) for p in params]
    pieces: defaultdict[str, list[int]] = defaultdict(list)
    for i, p in enumerate(params):
        name = _piece(p)
        if name is not None:
            pieces[name].append(i)
    digests = [
        _digest([layout, _place(p), w, g]) if squared is not None and squared > 0.0 else None
        for layout, p, (w, g, squared) in zip(layouts, params, numbers, strict=True)
    ]
    return Fingerprint(
        {"parameters": _said(params), **{name: str(value) for name, value in settings.items()}},
        _digest(layouts),
        {name: _gathered([numbers[i] for i in held]) for name, held in pieces.items()},
        digests if parts else [],
        _digest([layouts, [_place(p) for p in params], numbers]),
    )


def differences(ranks: Sequence[Fingerprint], names: Sequence[int]) -> list[str]:
    """In what the ranks differ that should hold replicas or shards of one model; one line for each rank that does.

    Args:
        names: how people know the ranks.
    """
    said = []
    holders: dict[str, int] = {}
    first, leader = ranks[0], names[0]
    for i, (rank, here) in enumerate(zip(names, ranks, strict=True)):
        other = [name for name, value in first.settings.items() if here.settings.get(name) not in (value, ANY)]
        if other:
            pairs = [(name, first.settings[name], here.settings.get(name)) for name in other]
            said.append("; ".join(f"{name}: {there} at rank {leader}, {value} at rank {rank}" for name, there, value in pairs))
            continue
        if here.layout != first.layout:
            said.append(f"rank {rank} has parameters of other shapes, dtypes or placements than rank {leader}")
            continue
        for name, piece in here.pieces.items():
            holder = holders.setdefault(name, i)
            there = ranks[holder].pieces[name]
            if piece.weights != there.weights:
                said.append(f"rank {rank} has other weights than rank {names[holder]}")
                break
            if not _same_gradient(piece, there):
                norms = [math.sqrt(sum(p.g_norm_sq)) for p in (piece, there)]
                said.append(
                    f"rank {rank} has other gradients than rank {names[holder]} (norms {norms[0]:.4g} and {norms[1]:.4g})"
                )
                break
    return said


def other_settings(ranks: Sequence[Fingerprint], names: Sequence[int]) -> list[str]:
    """As `differences`, for ranks that hold parts of one model: only in their settings must they agree."""
    shared = [{name: value for name, value in rank.settings.items() if name != "parameters"} for rank in ranks]
    return differences([Fingerprint(settings, "", {}, []) for settings in shared], names)


def held_before(ranks: Sequence[Fingerprint]) -> list[list[int]]:
    """Of ranks that hold parts: for each rank, which of its parameters a rank before it holds too, by index.

    A parameter is recognised by its weights and its gradient. Where that is 0 at the start it is not, unless the ranks hold
    the same parameters throughout.
    """
    seen: set[str] = set()
    wholes: set[str] = set()
    found: list[list[int]] = []
    for rank in ranks:
        digests = [digest for digest in rank.params if digest is not None]
        if digests and rank.whole in wholes:
            found.append(list(range(len(rank.params))))
        else:
            found.append([i for i, digest in enumerate(rank.params) if digest in seen])
        seen.update(digests)
        wholes.add(rank.whole)
    return found


def tells(ranks: Sequence[Fingerprint]) -> bool:
    """Whether the gradients tell anything: one is not 0, and all are finite."""
    sums = [value for rank in ranks for piece in rank.pieces.values() for value in piece.g_norm_sq]
    return any(sums) and all(map(math.isfinite, sums))


def _same_gradient(a: Piece, b: Piece) -> bool:
    if a.gradients == b.gradients:
        return True
    pairs = [(math.sqrt(x), math.sqrt(y)) for x, y in zip(a.g_norm_sq, b.g_norm_sq, strict=True)]
    close = all(abs(x - y) <= _SAME * max(x, y) or not math.isfinite(x + y) for x, y in pairs)
    return close and a.with_gradient == b.with_gradient


def _gathered(numbers: Sequence[tuple[int, int | None, float | None]]) -> Piece:
    sums = [0.0] * _BUCKETS
    for i, (_, _, squared) in enumerate(numbers):
        sums[i % _BUCKETS] += squared or 0.0
    return Piece(
        _digest([w for w, _, _ in numbers]),
        _digest([g for _, g, _ in numbers]),
        sum(g is not None for _, g, _ in numbers),
        sums,
    )


def _measure(params: Sequence[Tensor]) -> list[tuple[int, int | None, float | None]]:
    """Of what this rank holds of each parameter: the sum of its bits, that of its gradient's, and ‖g‖²."""
    found: dict[tuple[int, int], float] = {}
    bits: defaultdict[torch.device, list[tuple[tuple[int, int], Tensor]]] = defaultdict(list)
    squares: defaultdict[torch.device, list[tuple[tuple[int, int], Tensor]]] = defaultdict(list)
    for i, p in enumerate(params):
        x, g = _local(p), _local_gradient(p)
        bits[x.device].append(((i, 0), _bits(x)))
        if g is not None:
            bits[g.device].append(((i, 1), _bits(g)))
            squares[g.device].append(((i, 2), _norm(g)))
    for table in (bits, squares):
        for rows in table.values():
            found.update(zip((at for at, _ in rows), torch.stack([value for _, value in rows]).tolist(), strict=True))
    return [
        (int(found[i, 0]), int(found[i, 1]) if (i, 1) in found else None, found[i, 2] ** 2 if (i, 2) in found else None)
        for i in range(len(params))
    ]


def _bits(t: Tensor) -> Tensor:
    chunks = t.reshape(-1).view(_INTEGERS[t.element_size()]).split(_CHUNK)
    return torch.stack([chunk.sum(dtype=torch.int64) for chunk in chunks]).sum()


def _norm(g: Tensor) -> Tensor:
    dtype = torch.float32 if g.element_size() < 4 else g.dtype
    norms = [torch.linalg.vector_norm(chunk, dtype=dtype).float() for chunk in g.reshape(-1).split(_CHUNK)]
    found: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return found


def _local(p: Tensor) -> Tensor:
    shard: Tensor = getattr(p, "_local_tensor", p)
    return shard.detach()


def _local_gradient(p: Tensor) -> Tensor | None:
    """A dense gradient that is laid out as the parameter is. Others are left out: to spread them anew takes a collective."""
    g: Any = p.grad
    if g is None or g.layout is not torch.strided or p.is_complex():
        return None
    if getattr(g, "placements", None) != getattr(p, "placements", None):
        return None
    return _local(g)


def _layout(p: Any) -> str:
    mesh = getattr(p, "device_mesh", None)
    spread = "" if mesh is None else f"{p.placements} {tuple(mesh.shape)}"
    return f"{tuple(p.shape)} {p.dtype} {spread}"


def _piece(p: Any) -> str | None:
    """The name of the piece that this rank holds of a parameter: of a DTensor, where its shards lie; None if it holds none."""
    place = _place(p)
    return "whole" if place == [] else None if place is None else f"{p.device_mesh.mesh.flatten().tolist()} {place}"


def _place(p: Any) -> list[int] | None:
    """Which shard of a parameter this rank holds: its coordinates along the mesh dimensions that split it."""
    mesh = getattr(p, "device_mesh", None)
    if mesh is None:
        return []
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return None
    return [at for at, placement in zip(coordinate, p.placements, strict=True) if not placement.is_replicate()]


def _said(params: Sequence[Tensor]) -> str:
    return f"{len(params)} with {sum(p.numel() for p in params):,} numbers"


def _digest(values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()
