"""The kernels of a step's two passes on CUDA; `_triton` launches them over a table of tensor addresses.

    reduce   reads Δ, g, x; writes x_t to a scratch buffer unless it can be recomputed; four float64 sums per scale group
    apply    reads x_t + u, x_t (or x_ref), Δ; writes Δ and x

`table` is int64 (4, tensors): the addresses of Δ, g, x, and x_ref or the scratch for x_t. Block b takes the elements of tensor
`block_tensor[b]` from `block_start[b]` on. Products and sums are float64, and every sum is taken in one fixed order.

Where x_ref is kept, apply also leaves a seal of each part that it writes: a hash of x, and the S at which x was placed. reduce
has x at hand anyway and compares. A block whose hash differs was changed from outside (`_changes`), and its program moves x_ref
too. So a change is seen at no cost in memory traffic, and without the host.

Only imported if there are a CUDA device and Triton.
"""

import triton
import triton.language as tl


@triton.jit
def _mixed(x, at):
    """Of each element a number that depends on its bits and its place `at` in the block; a change of the element changes it."""
    if x.dtype.primitive_bitwidth == 32:
        z = x.to(tl.uint32, bitcast=True)
        z ^= z >> 13  # else the sign alone would not reach the lower bits
    else:
        z = x.to(tl.uint16, bitcast=True).to(tl.uint32)
    z *= at.to(tl.uint32) * 0x9E3779B2 | 1
    z ^= z >> 15
    return z.to(tl.int32, bitcast=True)


@triton.jit
def seal_kernel(
    table, count, block_tensor, block_start, numels, scales, seals, sealed_at,
    X: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Seals x as it is; `scales` is float32 (tensors): the S at which each was placed."""
    block = tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS
    t = tl.load(block_tensor + block)
    start = tl.load(block_start + block) + part * BLOCK
    x = tl.load(table + 2 * count + t).to(tl.pointer_type(X)) + start
    at = tl.arange(0, BLOCK)
    inside = at < tl.load(numels + t) - start
    mixed = tl.where(inside, _mixed(tl.load(x + at, mask=inside, other=0.0), part * BLOCK + at), 0)
    tl.store(seals + tl.program_id(0), tl.sum(mixed))
    tl.store(sealed_at + tl.program_id(0), tl.load(scales + t))


@triton.jit
def _move_ref(delta, x, base, at, inside, S, X: tl.constexpr, R: tl.constexpr):
    """x_ref ← x − S·Δ where x is not what apply left. x then follows the rounding of x_ref, for apply computes x_t from it."""
    v = tl.load(x + at, mask=inside, other=0.0)
    d = tl.load(delta + at, mask=inside, other=0.0)
    b = tl.load(base + at, mask=inside, other=0.0)
    differs = inside & (v != (b.to(tl.float32) + S * d).to(X))
    moved = (v.to(tl.float32) - S * d).to(R)
    tl.store(base + at, moved, mask=differs)
    tl.store(x + at, (moved.to(tl.float32) + S * d).to(X), mask=differs)


@triton.jit
def reduce_kernel(
    table, count, block_tensor, block_start, numels, partial, blocks, seals, sealed_at,
    X: tl.constexpr, G: tl.constexpr, R: tl.constexpr, SAVE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """One program reduces CHUNK elements of one tensor, and writes four sums to `partial`, float64 (4, blocks)."""
    pid = tl.program_id(0)
    t = tl.load(block_tensor + pid)
    start = tl.multiple_of(tl.load(block_start + pid), 16)
    left = tl.load(numels + t) - start
    delta = tl.multiple_of(tl.load(table + t).to(tl.pointer_type(tl.float32)), 16) + start
    grad = tl.multiple_of(tl.load(table + count + t).to(tl.pointer_type(G)), 16) + start
    x = tl.multiple_of(tl.load(table + 2 * count + t).to(tl.pointer_type(X)), 16) + start
    saved = tl.multiple_of(tl.load(table + 3 * count + t).to(tl.pointer_type(R)), 16) + start
    mixed = tl.zeros([BLOCK], tl.int32)
    dg = tl.zeros([BLOCK], tl.float64)
    dx = tl.zeros([BLOCK], tl.float64)
    gg = tl.zeros([BLOCK], tl.float64)
    xx = tl.zeros([BLOCK], tl.float64)
    if left >= CHUNK:  # without a mask, which is what makes the loads 16 bytes wide
        for i in range(0, CHUNK, BLOCK):
            at = i + tl.arange(0, BLOCK)
            raw = tl.load(x + at)
            d = tl.load(delta + at).to(tl.float64)
            g = tl.load(grad + at).to(tl.float64)
            if SAVE:
                tl.store(saved + at, raw)
            else:
                mixed += _mixed(raw, at)
            v = raw.to(tl.float64)
            dg += d * g
            dx += d * v
            gg += g * g
            xx += v * v
    else:
        for i in range(0, CHUNK, BLOCK):
            at = i + tl.arange(0, BLOCK)
            inside = at < left
            raw = tl.load(x + at, mask=inside, other=0.0)
            d = tl.load(delta + at, mask=inside, other=0.0).to(tl.float64)
            g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float64)
            if SAVE:
                tl.store(saved + at, raw, mask=inside)
            else:
                mixed += tl.where(inside, _mixed(raw, at), 0)
            v = raw.to(tl.float64)
            dg += d * g
            dx += d * v
            gg += g * g
            xx += v * v
    tl.store(partial + pid, tl.sum(dg))
    tl.store(partial + blocks + pid, tl.sum(dx))
    tl.store(partial + 2 * blocks + pid, tl.sum(gg))
    tl.store(partial + 3 * blocks + pid, tl.sum(xx))
    if not SAVE:
        seal = tl.load(seals + PARTS * pid)
        for part in tl.static_range(1, PARTS):
            seal += tl.load(seals + PARTS * pid + part)
        if tl.sum(mixed) != seal:
            S = tl.load(sealed_at + PARTS * pid)
            for i in range(0, CHUNK, BLOCK):
                at = i + tl.arange(0, BLOCK)
                _move_ref(delta, x, saved, at, at < left, S, X, R)


@triton.jit
def total_kernel(partial, blocks, group_start, totals, BLOCK: tl.constexpr):
    """One program adds up one of the four sums over the blocks of one scale group."""
    group = tl.program_id(0)
    which = tl.program_id(1)
    begin = tl.load(group_start + group)
    end = tl.load(group_start + group + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for i in range(begin, end, BLOCK):
        at = i + tl.arange(0, BLOCK)
        total += tl.load(partial + which * blocks + at, mask=at < end, other=0.0)
    place = totals + group * 4 + which
    tl.store(place, tl.load(place) + tl.sum(total))


@triton.jit
def flag_kernel(totals, count, flag, BLOCK: tl.constexpr):
    """1.0 if a total is NaN or infinite, else 0.0: what a fused BASE takes as `found_inf`."""
    bad = tl.zeros([BLOCK], tl.int32)
    for i in range(0, count, BLOCK):
        at = i + tl.arange(0, BLOCK)
        value = tl.load(totals + at, mask=at < count, other=0.0)
        bad += (value - value != 0.0).to(tl.int32)
    tl.store(flag, (tl.sum(bad) > 0).to(tl.float32))


@triton.jit
def _moved(D, x_base, x, S, S_next, X: tl.constexpr, REF: tl.constexpr):
    """Δ_{t+1} and x_{t+1}; `x_base` is x_ref if REF, else x_t."""
    if REF:
        x_t = (x_base + S * D).to(X).to(tl.float32)
        D_next = D + (x - x_t)
        x_next = x_base + S_next * D_next
    else:
        u = x - x_base
        D_next = D + u
        x_next = x_base + (S * u + (S_next - S) * D_next)
    return D_next, x_next


@triton.jit
def apply_kernel(
    table, count, block_tensor, block_start, numels, scales, seals, sealed_at,
    X: tl.constexpr, R: tl.constexpr, REF: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """PARTS programs share a block. `scales` is float32 (2, tensors): S_t at which each tensor was placed, and S_{t+1}."""
    block = tl.program_id(0) // PARTS
    first = (tl.program_id(0) % PARTS) * BLOCK
    t = tl.load(block_tensor + block)
    start = tl.multiple_of(tl.load(block_start + block) + first, 16)
    left = tl.load(numels + t) - start
    S = tl.load(scales + t)
    S_next = tl.load(scales + count + t)
    delta = tl.multiple_of(tl.load(table + t).to(tl.pointer_type(tl.float32)), 16) + start
    x = tl.multiple_of(tl.load(table + 2 * count + t).to(tl.pointer_type(X)), 16) + start
    base = tl.multiple_of(tl.load(table + 3 * count + t).to(tl.pointer_type(R)), 16) + start
    at = tl.arange(0, BLOCK)
    if left >= BLOCK:
        d = tl.load(delta + at)
        b = tl.load(base + at).to(tl.float32)
        v = tl.load(x + at).to(tl.float32)
        d_next, x_next = _moved(d, b, v, S, S_next, X, REF)
        tl.store(delta + at, d_next)
        tl.store(x + at, x_next.to(X))
        if REF:
            tl.store(seals + tl.program_id(0), tl.sum(_mixed(x_next.to(X), first + at)))
            tl.store(sealed_at + tl.program_id(0), S_next)
    else:
        inside = at < left
        d = tl.load(delta + at, mask=inside)
        b = tl.load(base + at, mask=inside).to(tl.float32)
        v = tl.load(x + at, mask=inside).to(tl.float32)
        d_next, x_next = _moved(d, b, v, S, S_next, X, REF)
        tl.store(delta + at, d_next, mask=inside)
        tl.store(x + at, x_next.to(X), mask=inside)
        if REF:
            tl.store(seals + tl.program_id(0), tl.sum(tl.where(inside, _mixed(x_next.to(X), first + at), 0)))
            tl.store(sealed_at + tl.program_id(0), S_next)
