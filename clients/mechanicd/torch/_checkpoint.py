"""What `state_dict()` says beside BASE's: the key "mechanic", plain types and tensors only.

    version        1
    config         the tuner's settings and delta_layout
    tuner_state    uint8, shape (bytes,): TunerState.to_bytes()
    delta          {parameter's index: Δ, of its shape and device}
    ref            {parameter's index: x_ref, of its shape, dtype and device}, where it is kept
    placed         {parameter's index: the S at which x was placed last}

x itself is in the model's checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from mechanicd.client import ConfigMismatch, ResumeError
from mechanicd.torch import _reference
from mechanicd.tuner import StateError, TunerConfig, TunerState

KEY: Final = "mechanic"
VERSION: Final = 1


@dataclass
class Memory:
    """What a mechanized optimizer remembers of its parameters; only of those that ever had a gradient.

    Attributes:
        layout: "delta" or "delta+ref"; see `_passes`.
        delta: Δ of each parameter; float32 for low-precision parameters, else their dtype.
        ref: x_ref of each that keeps it: all of them, or those of low precision.
        placed: the S at which each parameter was placed last, so that x_ref = x − placed·Δ whoever sat out a step.
    """

    layout: str = "delta"
    delta: dict[Tensor, Tensor] = field(default_factory=dict)
    ref: dict[Tensor, Tensor] = field(default_factory=dict)
    placed: dict[Tensor, float] = field(default_factory=dict)

    def join(self, p: Tensor, S: float) -> None:
        """Makes sure that a parameter has its Δ, which is 0 at first, and its x_ref if it keeps one."""
        if p not in self.delta:
            self.delta[p] = _reference.new_delta(p)
            self.placed[p] = S
            if self.keeps_ref(p):
                self.ref[p] = p.detach().clone()

    def move(self, old: Tensor, new: Tensor) -> None:
        """What is kept of a tensor is another's now."""
        if old in self.delta:
            self.delta[new], self.placed[new] = self.delta.pop(old), self.placed.pop(old)
            if old in self.ref:
                self.ref[new] = self.ref.pop(old)

    def keeps_ref(self, p: Tensor) -> bool:
        """Whether x_ref of a parameter is kept."""
        return self.layout == "delta+ref" or p.dtype in _reference.LOW_PRECISION


def pack(config: TunerConfig, state: TunerState, memory: Memory, params: Sequence[Tensor]) -> dict[str, Any]:
    """The value of "mechanic"; its Δ are the optimizer's own tensors, as is torch's way."""
    return {
        "version": VERSION,
        "config": _plain(config, memory.layout),
        "tuner_state": torch.frombuffer(bytearray(state.to_bytes()), dtype=torch.uint8),
        "delta": {i: memory.delta[p] for i, p in enumerate(params) if p in memory.delta},
        "ref": {i: memory.ref[p] for i, p in enumerate(params) if p in memory.ref},
        "placed": {i: memory.placed[p] for i, p in enumerate(params) if p in memory.placed},
    }


def unpack(
    state_dict: Mapping[str, Any], config: TunerConfig, delta_layout: str, params: Sequence[Tensor]
) -> tuple[TunerState, Memory]:
    """The tuner's state and copies of every Δ, each on its parameter's device; the inverse of `pack`, exact.

    Raises:
        ResumeError: there is nothing of MECHANIC in the checkpoint (NOT_MECHANIZED), a newer version wrote it
            (CHECKPOINT_VERSION), its tuner state is damaged (INVALID_TUNER_STATE), or a Δ does not fit its parameter
            (DELTA_MISMATCH).
        ConfigMismatch: CONFIG_MISMATCH; `metadata["field"]` names the setting.
    """
    saved = state_dict.get(KEY)
    if saved is None:
        raise ResumeError(
            "NOT_MECHANIZED",
            'a state_dict without "mechanic", that of a plain optimizer; load it into the optimizer that mechanize() wraps '
            "(opt.base.load_state_dict), and the run starts with Δ = 0",
        )
    if saved.get("version") != VERSION:
        raise ResumeError(
            "CHECKPOINT_VERSION",
            f"a checkpoint of version {saved.get('version')}, this program reads version {VERSION}; upgrade mechanicd",
        )
    for name, here in _plain(config, delta_layout).items():
        there = saved["config"].get(name)
        if there != here:
            raise ConfigMismatch(
                "CONFIG_MISMATCH",
                f"the checkpoint was made with {name}={there!r}, this optimizer has {name}={here!r}; "
                "mechanize with the checkpoint's setting",
                {"field": name},
            )
    try:
        state = TunerState.from_bytes(bytes(saved["tuner_state"].tolist()), config)
    except StateError as error:
        raise ResumeError(error.reason, str(error)) from None
    memory = Memory(delta_layout)
    for i, delta in saved["delta"].items():
        if not 0 <= i < len(params) or delta.shape != params[i].shape:
            here = f"has the shape {tuple(params[i].shape)}" if 0 <= i < len(params) else "is not there"
            raise ResumeError(
                "DELTA_MISMATCH",
                f"the checkpoint has a Δ of shape {tuple(delta.shape)} for parameter {i}, which {here}; "
                "load it into the model that it was made with",
            )
        memory.delta[params[i]] = _reference.new_delta(params[i]).copy_(delta)
        memory.placed[params[i]] = float(saved["placed"][i])
        if memory.keeps_ref(params[i]):
            memory.ref[params[i]] = _x_ref(saved.get("ref", {}).get(i), params[i], delta, memory.placed[params[i]])
    return state, memory


def _x_ref(saved: Tensor | None, p: Tensor, delta: Tensor, placed: float) -> Tensor:
    """x_ref of a parameter, or what comes nearest where the checkpoint has none: x − S·Δ (a checkpoint of another dtype)."""
    if saved is None:
        there = p.detach().to(torch.float64) - placed * delta.to(p.device, torch.float64)
        return torch.empty_like(p, requires_grad=False).copy_(there)
    return torch.empty_like(p, requires_grad=False).copy_(saved)


def _plain(config: TunerConfig, delta_layout: str) -> dict[str, Any]:
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {**fields, "delta_layout": delta_layout}
