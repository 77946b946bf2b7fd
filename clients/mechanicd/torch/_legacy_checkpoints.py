"""Converts older checkpoints to today's form: version 1 of this program, and those of the package mechanic-pytorch."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from mechanicd.client import ConfigMismatch
from mechanicd.torch._checkpoint import DELTA, KEY, PLACED, REF, VERSION, check_config, plain
from mechanicd.tuner import TunerConfig, TunerState

MECHANIC_PYTORCH: Final = "_mechanic"
FLOAT32: Final = 1e-6
"""The relative error that a setting may have from being stored as a float32."""


def upgraded(
    state_dict: Mapping[str, Any], config: TunerConfig, delta_layout: str, params: Sequence[Tensor]
) -> Mapping[str, Any]:
    """The checkpoint in today's form; unchanged if it is that already, or if it is unknown.

    Args:
        params: the model's parameters in BASE's order, already loaded from the checkpoint.

    Raises:
        ConfigMismatch: CONFIG_MISMATCH; mechanic-pytorch had other settings than this optimizer.
    """
    if KEY in state_dict and state_dict[KEY].get("version") == 1:
        return _from_version_1(state_dict)
    if MECHANIC_PYTORCH in state_dict.get("state", {}):
        return _from_mechanic_pytorch(state_dict, config, delta_layout, params)
    return state_dict


def _with(state_dict: Mapping[str, Any], states: dict[Any, Any], ours: dict[str, Any]) -> dict[str, Any]:
    first, *rest = state_dict["param_groups"]
    return {"state": states, "param_groups": [{**first, KEY: {"version": VERSION, "frozen": False, **ours}}, *rest]}


def _from_version_1(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 kept everything under the key "mechanic"."""
    saved, states = state_dict[KEY], dict(state_dict["state"])
    for i, placed in saved["placed"].items():
        mine = {PLACED: placed, DELTA: saved["delta"][i]}
        if i in saved.get("ref", {}):
            mine[REF] = saved["ref"][i]
        states[i] = {**states.get(i, {}), **mine}
    state = base64.b64encode(bytes(saved["tuner_state"].tolist())).decode()
    return _with(state_dict, states, {"config": saved["config"], "tuner_state": state})


def _from_mechanic_pytorch(
    state_dict: Mapping[str, Any], config: TunerConfig, delta_layout: str, params: Sequence[Tensor]
) -> dict[str, Any]:
    """Its state is in `state["_mechanic"]`: by name, the settings and the tuner's m, v, r, s as float32 tensors; keyed by the
    parameters themselves (other objects after torch.load, but still in order), x_ref and maybe Δ."""
    saved = state_dict["state"][MECHANIC_PYTORCH]
    theirs = {
        **plain(config, delta_layout),
        "convention": "pytorch",
        "scale_groups": ["all"],
        "betas": _near(saved["betas"].tolist(), list(config.betas)),
        **{name: _near([float(saved[name])], [getattr(config, name)])[0] for name in ("s_decay", "s_init", "eps")},
    }
    check_config(theirs, plain(config, delta_layout))
    kept = [value for key, value in saved.items() if isinstance(key, Tensor)]
    if len(kept) != len(params):
        raise ConfigMismatch(
            "CONFIG_MISMATCH",
            f"mechanic-pytorch's checkpoint has {len(kept)} parameters, but this optimizer has {len(params)}; "
            "load it into the model that it was saved from",
            {"field": "params"},
        )
    m, v, r, s = (tuple(saved[name].double().tolist()) for name in ("max_product", "sum_squared_products", "reward", "s"))
    row = TunerState.initial(config).rows[0]._replace(m=m, v=v, r=r, s=s)
    state = TunerState.from_rows(int(saved["iter_count"]), (row,))
    S = float(torch.sum(saved["s"]))
    states = {key: entry for key, entry in state_dict["state"].items() if key != MECHANIC_PYTORCH}
    for i, (p, entry) in enumerate(zip(params, kept, strict=True)):
        delta = entry.get("delta")
        if delta is None:  # recomputed as mechanic-pytorch itself does
            delta = (p.detach().double().cpu() - entry["ref"].double().cpu()) / (S + float(saved["eps"]))
        states[i] = {**states.get(i, {}), PLACED: S, REF: entry["ref"], DELTA: delta}
    ours = {"config": theirs, "tuner_state": base64.b64encode(state.to_bytes()).decode()}
    return _with(state_dict, states, ours)


def _near(there: list[float], here: list[float]) -> list[float]:
    """This optimizer's setting if the checkpoint's is the same but for float32 rounding; else the checkpoint's."""
    same = len(there) == len(here) and all(abs(a - b) <= FLOAT32 * abs(b) for a, b in zip(there, here, strict=True))
    return here if same else there
