"""The tuner on a CUDA device, with the same bits as the host's: each operation is a PTX instruction that no compiler fuses.

It repeats `mechanicd.tuner._rules` operation by operation. The host takes every step again and compares.
"""

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from mechanicd.tuner import H_MAX, R_MAX, S_MAX, V_MAX, TunerConfig, TunerState

BLOCK: Final = 32
"""Scale groups per program."""
COLUMNS: Final = 5
"""Of a report: the four sums, and S_{t+1} before the cap."""


@triton.jit
def _mul(a, b):
    return tl.inline_asm_elementwise("mul.rn.f64 $0, $1, $2;", "=d,d,d", [a, b], dtype=tl.float64, is_pure=True, pack=1)


@triton.jit
def _add(a, b):
    return tl.inline_asm_elementwise("add.rn.f64 $0, $1, $2;", "=d,d,d", [a, b], dtype=tl.float64, is_pure=True, pack=1)


@triton.jit
def _sub(a, b):
    return tl.inline_asm_elementwise("sub.rn.f64 $0, $1, $2;", "=d,d,d", [a, b], dtype=tl.float64, is_pure=True, pack=1)


@triton.jit
def _div(a, b):
    return tl.inline_asm_elementwise("div.rn.f64 $0, $1, $2;", "=d,d,d", [a, b], dtype=tl.float64, is_pure=True, pack=1)


@triton.jit
def _sqrt(a):
    return tl.inline_asm_elementwise("sqrt.rn.f64 $0, $1;", "=d,d", [a], dtype=tl.float64, is_pure=True, pack=1)


@triton.jit
def _paper_kernel(totals, flag, state, constants, scales, report, G, N: tl.constexpr, BLOCK: tl.constexpr):
    """Algorithm 1, lines 10–16, for BLOCK scale groups.

    `state` is float64 (4, N, G): m, v, r, s. `constants`: λ, ε, s_init, n, H_MAX, R_MAX, V_MAX, S_MAX, the cap, 0, then the N β
    and the N β². `scales` is float32 (2, G): S_t and S_{t+1}, capped. If `flag` is set, the state stays as it is.
    """
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = g < G
    one = constants + 0 * g  # constants are loaded as blocks, so that every operand is one
    dg = tl.load(totals + 4 * g, mask=here, other=0.0)
    dx = tl.load(totals + 4 * g + 1, mask=here, other=0.0)
    gg = tl.load(totals + 4 * g + 2, mask=here, other=0.0)
    xx = tl.load(totals + 4 * g + 3, mask=here, other=0.0)
    skip = tl.load(flag + 0 * g) > 0.0
    decay_weight = tl.load(one)
    eps = tl.load(one + 1)
    s_init = tl.load(one + 2)
    n = tl.load(one + 3)
    h_max = tl.load(one + 4)
    r_max = tl.load(one + 5)
    v_max = tl.load(one + 6)
    s_max = tl.load(one + 7)
    cap = tl.load(one + 8)
    zero = tl.load(one + 9)
    # S_t = Σ s_t, in the order of the host's sum: from 0, β by β.
    S = zero
    for i in tl.static_range(N):
        S = _add(S, tl.load(state + (3 * N + i) * G + g, mask=here, other=0.0))
    # Line 10: h_t = ⟨Δ,g⟩ + λ·S_t·‖g‖·⟨Δ,x⟩/(‖x‖ + ε), within ±H_MAX.
    decay = _mul(_mul(_mul(decay_weight, S), _sqrt(gg)), dx)
    h = _add(dg, _div(decay, _add(_sqrt(xx), eps)))
    h = tl.where(h < -h_max, -h_max, h)
    h = tl.where(h > h_max, h_max, h)
    h = _add(h, zero)  # −0.0 becomes 0.0, as on the host
    size = tl.where(h >= 0.0, h, -h)
    square = _mul(h, h)
    S_next = zero
    for i in tl.static_range(N):
        beta = tl.load(one + 10 + i)
        beta_square = tl.load(one + 10 + N + i)
        m_at = state + i * G + g
        v_at = state + (N + i) * G + g
        r_at = state + (2 * N + i) * G + g
        s_at = state + (3 * N + i) * G + g
        m_t = tl.load(m_at, mask=here, other=0.0)
        v_t = tl.load(v_at, mask=here, other=0.0)
        r_t = tl.load(r_at, mask=here, other=0.0)
        s_t = tl.load(s_at, mask=here, other=0.0)
        # Line 11: m = max(β·m, |h|).
        m = _mul(beta, m_t)
        m = tl.where(size > m, size, m)
        # Line 12: v = β²·v + h².
        v = _add(_mul(beta_square, v_t), square)
        v = tl.where(v > v_max, v_max, v)
        # Line 13: r = max(0, β·r − s_t·h), with the bet just played, s_t.
        r = _sub(_mul(beta, r_t), _mul(s_t, h))
        r = tl.where(r <= 0.0, zero, r)
        r = tl.where(r > r_max, r_max, r)
        # Lines 15 and 16: W = s_init·m/n + r, s_{t+1} = W/(√v + ε); then S_{t+1} = Σ s_{t+1}.
        W = _add(_div(_mul(s_init, m), n), r)
        s = _div(W, _add(_sqrt(v), eps))
        s = tl.where(s > s_max, s_max, s)
        s = tl.where(skip, s_t, s)  # a step with a sum that is not finite leaves the state as it was
        tl.store(m_at, tl.where(skip, m_t, m), mask=here)
        tl.store(v_at, tl.where(skip, v_t, v), mask=here)
        tl.store(r_at, tl.where(skip, r_t, r), mask=here)
        tl.store(s_at, s, mask=here)
        S_next = _add(S_next, s)
    capped = tl.where(cap < S, cap, S)
    capped_next = tl.where(cap < S_next, cap, S_next)
    tl.store(scales + g, capped.to(tl.float32), mask=here)
    tl.store(scales + G + g, capped_next.to(tl.float32), mask=here)
    row = report + 5 * g
    tl.store(row, dg, mask=here)
    tl.store(row + 1, dx, mask=here)
    tl.store(row + 2, gg, mask=here)
    tl.store(row + 3, xx, mask=here)
    tl.store(row + 4, S_next, mask=here)


class DeviceTuner:
    """The tuner's state on one CUDA device.

    Args:
        config: of convention "paper" or "pytorch".
        cap: parameters are placed with no larger S.

    Attributes:
        scales: float32 (2, G): S_t and S_{t+1} of the last step, capped.
        report: float64 (G, COLUMNS) of the last step.
    """

    def __init__(self, device: torch.device, config: TunerConfig, cap: float) -> None:
        n, G = len(config.betas), len(config.scale_groups)
        self._n, self._groups = n, G
        values = [config.s_decay, config.eps, config.s_init, float(n), H_MAX, R_MAX, V_MAX, S_MAX, cap, 0.0]
        values += [*config.betas, *(beta * beta for beta in config.betas)]
        self._constants = torch.tensor(values, dtype=torch.float64, device=device)
        self._state = torch.zeros(4, n, G, dtype=torch.float64, device=device)
        self.scales = torch.zeros(2, G, dtype=torch.float32, device=device)
        self.report = torch.zeros(G, COLUMNS, dtype=torch.float64, device=device)

    def load(self, state: TunerState) -> None:
        """Copies the host's state to the device."""
        rows: Any = [list(row[:4]) for row in state.rows]  # (G, 4, n)
        self._state.copy_(torch.tensor(rows, dtype=torch.float64).permute(1, 2, 0))

    def advance(self, totals: Tensor, flag: Tensor) -> None:
        """One step, on the device. The current device must be this one.

        Args:
            totals: float64 (G, 4), the four scalars of each scale group.
            flag: float32, shape (): not 0 if a sum is not finite.
        """
        _paper_kernel[(-(-self._groups // BLOCK),)](
            totals, flag, self._state, self._constants, self.scales, self.report, self._groups,
            N=self._n, BLOCK=BLOCK, num_warps=1,
        )  # fmt: skip
