"""The two passes of a step over the parameters, in plain tensor operations, for any device and dtype.

    reduce   before BASE: Δ_t, g_t, x_t → the four scalars of each scale group
    apply    after BASE:  x_t, x_t + u_t, Δ_t → Δ_{t+1}, x_{t+1}

Only Δ is kept between steps; x_t is kept while BASE runs. Nothing here knows about sessions, so a faster version of either
pass can replace it and be tested against it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from mechanicd.tuner import Reductions

CHUNK: Final = 1 << 22
"""Elements that `reduce` processes at a time: its float64 copies stay at 3 × 8 × CHUNK bytes, however large a tensor is."""

CPU_CHUNK: Final = 1 << 18
"""The same on the CPU, for both passes, so that each operation finds its input in the cache. Chosen from 2^14 … 2^25 on two
cores with 1 MiB of L2 each and 32 MiB of L3: larger ones cost the same, smaller ones up to twice as much."""

LOW_PRECISION: Final = (torch.bfloat16, torch.float16)
"""Dtypes of x for which Δ and the arithmetic are float32."""


def new_delta(p: Tensor) -> Tensor:
    """Δ_1 = 0 for a parameter: its shape, device and strides; float32 for a low-precision one, else its dtype."""
    return torch.zeros_like(p, dtype=torch.float32 if p.dtype in LOW_PRECISION else p.dtype, requires_grad=False)


@torch.no_grad()
def reduce(groups: Sequence[Sequence[Tensor]], delta: Mapping[Tensor, Tensor]) -> list[Reductions]:
    """⟨Δ,g⟩, ⟨Δ,x⟩, ‖g‖², ‖x‖² of each scale group (Algorithm 1, what line 10 needs), multiplied and added in float64.

    The scalars reach the host together, one copy per device. The same tensors give the same bits.

    Args:
        groups: per scale group, its parameters that have a gradient; dense and real, any shape, dtype and device.
        delta: Δ_t of each of them, of the parameter's shape.
    """
    sums: defaultdict[torch.device, list[tuple[int, Tensor]]] = defaultdict(list)
    for index, params in enumerate(groups):
        for device, here in _by_device(params).items():
            # float64, except on devices that do not have it
            dtype = torch.float32 if device.type == "mps" else torch.float64
            chunk = CPU_CHUNK if device.type == "cpu" else CHUNK
            buffer = torch.empty(3, min(chunk, sum(p.numel() for p in here)), dtype=dtype, device=device)
            for batch in _batches(here, delta, chunk):
                at = 0
                for pieces in batch:
                    for row, piece in zip(buffer, pieces, strict=True):
                        row.narrow(0, at, piece.numel()).copy_(piece)
                    at += pieces[0].numel()
                D, g, x = buffer.narrow(1, 0, at)
                sums[device].append((index, torch.stack([D @ g, D @ x, g @ g, x @ x])))
    totals = [[0.0, 0.0, 0.0, 0.0] for _ in groups]
    for parts in sums.values():
        found = torch.stack([row for _, row in parts]).tolist()
        for (index, _), row in zip(parts, found, strict=True):
            totals[index] = [total + value for total, value in zip(totals[index], row, strict=True)]
    return [Reductions(*total) for total in totals]


@torch.no_grad()
def save(params: Sequence[Tensor]) -> list[Tensor]:
    """Copies of x_t, to keep while BASE runs."""
    return [p.detach().clone() for p in params]


@torch.no_grad()
def restore(params: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """x ← x_t, in place."""
    if saved:
        torch._foreach_copy_(list(params), list(saved))


@torch.no_grad()
def apply(
    params: Sequence[Tensor],
    saved: Sequence[Tensor],
    deltas: Sequence[Tensor],
    before: Sequence[float],
    after: Sequence[float],
) -> None:
    """Δ_{t+1} = Δ_t + u_t and x_{t+1} = x_t − S_t·Δ_t + S_{t+1}·Δ_{t+1}, in place (Algorithm 1, line 8 and the last).

    x moves by S_t·u_t + (S_{t+1} − S_t)·Δ_{t+1}, which is the same in exact arithmetic but better in floating
    point: there is no difference of two large products, only one rounding at the magnitude of x, and no further slot.

    Args:
        params: x_t + u_t, as BASE left them; become x_{t+1}.
        saved: x_t, of the shapes and dtypes of `params`.
        deltas: Δ_t, of the same shapes; float32 for low-precision parameters, else their dtype; become Δ_{t+1}.
        before: per parameter the S at which x_t was placed.
        after: per parameter S_{t+1}.
    """
    for indices, (S, S_next) in _buckets(params, before, after):
        for here, x, D in _in_cache(*([tensors[i] for i in indices] for tensors in (params, saved, deltas))):
            u = here
            if low := u[0].dtype in LOW_PRECISION:
                u, x = [p.float() for p in u], [p.float() for p in x]
            torch._foreach_sub_(u, x)
            torch._foreach_add_(D, u)
            torch._foreach_mul_(u, S)
            torch._foreach_add_(u, D, alpha=S_next - S)
            torch._foreach_add_(u, x)
            if low:
                torch._foreach_copy_(here, u)


@torch.no_grad()
def place(params: Sequence[Tensor], refs: Sequence[Tensor], deltas: Sequence[Tensor], scales: Sequence[float]) -> None:
    """x ← x_ref + S·Δ, in place, rounded once to x's dtype (Algorithm 1, the last line).

    Args:
        refs: x_ref, of the shapes and dtypes of `params`.
        deltas: Δ, float32 for low-precision parameters, else their dtype.
        scales: per parameter S.
    """
    for indices, (S, _) in _buckets(params, scales, scales):
        for x, r, D in _in_cache(*([tensors[i] for i in indices] for tensors in (params, refs, deltas))):
            torch._foreach_copy_(x, _sum(r, D, S))


@torch.no_grad()
def apply_ref(
    params: Sequence[Tensor],
    refs: Sequence[Tensor],
    deltas: Sequence[Tensor],
    before: Sequence[float],
    after: Sequence[float],
) -> None:
    """Δ_{t+1} = Δ_t + u_t and x_{t+1} = x_ref + S_{t+1}·Δ_{t+1}, in place. x_t is recomputed from x_ref, S_t and Δ_t.

    Args:
        params: x_t + u_t, as BASE left them; become x_{t+1}.
        refs: x_ref, of the shapes of `params`, in their dtype or that of `deltas`.
        deltas: Δ_t, float32 for low-precision parameters, else their dtype; become Δ_{t+1}.
        before: per parameter the S at which x_t was placed.
        after: per parameter S_{t+1}.
    """
    for indices, (S, S_next) in _buckets(params, before, after):
        for here, r, D in _in_cache(*([tensors[i] for i in indices] for tensors in (params, refs, deltas))):
            x_t = _sum(r, D, S)
            if here[0].dtype is not D[0].dtype:  # x held x_t rounded to its dtype
                x_t = [t.to(here[0].dtype) for t in x_t]
            _step_from(here, x_t, r, D, S_next)


@torch.no_grad()
def apply_left(
    params: Sequence[Tensor],
    left: Sequence[Tensor],
    refs: Sequence[Tensor],
    deltas: Sequence[Tensor],
    after: Sequence[float],
) -> None:
    """`apply_ref` where x_t is at hand: `left`, of the shapes and dtypes of `params`, which becomes x_{t+1} too."""
    for indices, (S_next, _) in _buckets(params, after, after):
        for here, x_t, r, D in _in_cache(*([tensors[i] for i in indices] for tensors in (params, left, refs, deltas))):
            _step_from(here, x_t, r, D, S_next)
            torch._foreach_copy_(x_t, here)


def _step_from(here: list[Tensor], x_t: list[Tensor], refs: list[Tensor], deltas: list[Tensor], S: float) -> None:
    """Δ += x_t + u − x_t; x = x_ref + S·Δ. `here` is x_t + u."""
    if here[0].dtype is deltas[0].dtype:
        torch._foreach_sub_(here, x_t)
        torch._foreach_add_(deltas, here)
        for x, r, D in zip(here, refs, deltas, strict=True):
            torch.add(r, D, alpha=S, out=x)
        return
    u = [p.to(deltas[0].dtype) for p in here]
    torch._foreach_sub_(u, [p.to(deltas[0].dtype) for p in x_t])
    torch._foreach_add_(deltas, u)
    torch._foreach_copy_(here, _sum(refs, deltas, S))


def _sum(refs: Sequence[Tensor], deltas: Sequence[Tensor], S: float) -> list[Tensor]:
    """x_ref + S·Δ in Δ's dtype."""
    wide = [r.to(D.dtype) for r, D in zip(refs, deltas, strict=True)]
    if any(w is r for w, r in zip(wide, refs, strict=True)):
        return list(torch._foreach_add(wide, list(deltas), alpha=S))
    torch._foreach_add_(wide, list(deltas), alpha=S)
    return wide


def _buckets(
    params: Sequence[Tensor], before: Sequence[float], after: Sequence[float]
) -> list[tuple[list[int], tuple[float, float]]]:
    """Indices of parameters that one foreach call can take together, with their S_t and S_{t+1}."""
    buckets: defaultdict[tuple[torch.device, torch.dtype, float, float], list[int]] = defaultdict(list)
    for i, p in enumerate(params):
        buckets[p.device, p.dtype, before[i], after[i]].append(i)
    return [(indices, (key[2], key[3])) for key, indices in buckets.items()]


def _by_device(params: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    devices: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
    for p in params:
        devices[p.device].append(p)
    return devices


def _batches(
    params: Sequence[Tensor], delta: Mapping[Tensor, Tensor], chunk: int
) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Flat pieces (Δ, g, x) of the parameters, in batches of at most `chunk` elements."""
    batch: list[tuple[Tensor, Tensor, Tensor]] = []
    room = chunk
    for p in params:
        assert p.grad is not None
        D, g, x = delta[p].reshape(-1), p.grad.reshape(-1), p.detach().reshape(-1)
        for start in range(0, x.numel(), chunk):
            size = min(chunk, x.numel() - start)
            if size > room:
                yield batch
                batch, room = [], chunk
            batch.append((D.narrow(0, start, size), g.narrow(0, start, size), x.narrow(0, start, size)))
            room -= size
    if batch:
        yield batch


def _in_cache(*lists: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """The tensors of parallel lists in portions that fit into the CPU's cache, large tensors as flat views.

    On other devices, everything at once.
    """
    if not lists[0] or lists[0][0].device.type != "cpu":
        yield [list(tensors) for tensors in lists]
        return
    portion: list[list[Tensor]] = [[] for _ in lists]
    room = CPU_CHUNK
    for together in zip(*lists, strict=True):
        cut = together[0].numel() > CPU_CHUNK and all(t.is_contiguous() for t in together)
        parts = zip(*(t.detach().view(-1).split(CPU_CHUNK) for t in together), strict=True) if cut else [together]
        for part in parts:
            if part[0].numel() > room and portion[0]:
                yield portion
                portion, room = [[] for _ in lists], CPU_CHUNK
            for tensors, t in zip(portion, part, strict=True):
                tensors.append(t)
            room -= part[0].numel()
    if portion[0]:
        yield portion
