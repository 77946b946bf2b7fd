"""What `state_dict()` adds to BASE's, in the places where torch's own tools expect an optimizer's state.

    state[i]["mechanic_delta"]     Δ of parameter i, with its shape and device, if it is kept; a DTensor for a DTensor
    state[i]["mechanic_ref"]       x_ref, with its shape and device, in its dtype or Δ's, if it is kept
    state[i]["mechanic_placed"]    float64, shape (): the S at which x was placed last
    param_groups[0]["mechanic"]    version: 2; config: the tuner's settings and delta_layout; frozen: whether S is frozen;
                                   tuner_state: TunerState.to_bytes() in base64; grown: the number of scale groups
                                   where the run got some after its first step, else 0; random: what `{random}` in
                                   the run's name stands for

x itself is in the model's checkpoint. BASE never sees these entries.

Some BASEs have a state_dict of another form (`is_standard`). Then all of it stands beside BASE's entries, in one of its own:

    ["mechanic"]    version, config, frozen, tuner_state as above; params: by the parameter's index, its three entries
"""

import base64
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor

from mechanicd.client import ConfigMismatch, ResumeError
from mechanicd.torch import _distributed, _reference
from mechanicd.torch._memory import Memory
from mechanicd.tuner import StateError, TunerConfig, TunerState

KEY: Final = "mechanic"
VERSION: Final = 2
DELTA, REF, PLACED = "mechanic_delta", "mechanic_ref", "mechanic_placed"
OURS: Final = (DELTA, REF, PLACED)


def pack(
    base: Mapping[str, Any],
    config: TunerConfig,
    state: TunerState,
    frozen: bool,
    grown: int,
    memory: Memory,
    params: Sequence[Tensor],
    wholes: Sequence[Tensor],
    random: str = "",
) -> dict[str, Any]:
    """BASE's state_dict with MECHANIC's part. As usual in torch, its tensors are the optimizer's own, not copies.

    Args:
        base: BASE's state_dict; not changed.
        params: what this process holds of each parameter, in BASE's order.
        wholes: the parameters themselves.
        random: what `{random}` in the run's name stands for.
    """
    kept: dict[int, dict[str, Any]] = {}
    for i, (p, whole) in enumerate(zip(params, wholes, strict=True)):
        if p not in memory.placed:
            continue
        mine = kept[i] = {PLACED: torch.tensor(memory.placed[p], dtype=torch.float64)}
        if p in memory.delta:
            mine[DELTA] = _distributed.like(memory.delta[p], whole)
        if p in memory.ref:
            mine[REF] = _distributed.like(memory.ref[p], whole)
    ours = {
        "version": VERSION,
        "config": plain(config, memory.layout),
        "tuner_state": base64.b64encode(state.to_bytes()).decode(),
        "frozen": frozen,
        "grown": grown,
        "random": random,
    }
    if not is_standard(base, len(params)):
        return {**base, KEY: {**ours, "params": kept}}
    states = dict(base["state"])
    for i, mine in kept.items():
        states[i] = {**states.get(i, {}), **mine}
    first, *rest = base["param_groups"]
    return {**base, "state": states, "param_groups": [{**first, KEY: ours}, *rest]}


class Given:
    """The state_dicts that an optimizer has given away. Their tensors are its own, and its next steps change Δ in them, but not
    the tuner's state: loaded then, they would put Δ of one step beside S of another."""

    def __init__(self) -> None:
        self._given: list[tuple[weakref.ref[Tensor], int]] = []

    def note(self, state_dict: Mapping[str, Any], step: int) -> None:
        """Notes one, as of a step."""
        self._given = [known for known in self._given if known[0]() is not None]
        self._given += [(weakref.ref(placed), step) for placed in _placed(state_dict)]

    def check(self, state_dict: Mapping[str, Any], step: int) -> None:
        """Checks that one can be loaded after a step.

        Raises:
            ResumeError: STATE_DICT_NOT_COPIED; a step has changed it.
        """
        for placed in _placed(state_dict):
            then = next((then for known, then in self._given if known() is placed), step)
            if then != step:
                raise ResumeError(
                    "STATE_DICT_NOT_COPIED",
                    f"this state_dict was taken at step {then}, but its tensors are the optimizer's own, and steps up to "
                    f"{step} have changed them; keep a copy, copy.deepcopy(opt.state_dict()), or save it to a file",
                )


def _placed(state_dict: Mapping[str, Any]) -> Iterator[Tensor]:
    """The first parameter's S in a state_dict, if it has one: a tensor that is made for it."""
    ours = state_dict.get(KEY)
    kept = ours.get("params") if isinstance(ours, Mapping) else state_dict.get("state")  # older versions kept it elsewhere
    entries = kept.values() if isinstance(kept, Mapping) else ()
    found = (entry[PLACED] for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get(PLACED), Tensor))
    yield from islice(found, 1)


def is_standard(base: Mapping[str, Any], params: int) -> bool:
    """Whether a BASE's state_dict has torch's form: the state by the parameter's index, and the param groups with the indices.

    Args:
        params: how many parameters BASE has.
    """
    states, groups = base.get("state"), base.get("param_groups")
    if not isinstance(states, Mapping) or not isinstance(groups, list) or not groups:
        return False
    if not all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups):
        return False
    if [i for group in groups for i in group["params"]] != list(range(params)):
        return False
    return all(isinstance(states.get(i, {}), Mapping) for i in range(params))


def bare(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """BASE's part of a checkpoint."""
    if KEY in state_dict:
        return {name: value for name, value in state_dict.items() if name != KEY}
    states = {
        key: {name: value for name, value in entry.items() if name not in OURS} if isinstance(entry, Mapping) else entry
        for key, entry in state_dict["state"].items()
    }
    groups = [{name: value for name, value in group.items() if name != KEY} for group in state_dict["param_groups"]]
    return {**state_dict, "state": {key: entry for key, entry in states.items() if entry != {}}, "param_groups": groups}


def unpack(
    state_dict: Mapping[str, Any], config: TunerConfig, delta_layout: str, params: Sequence[Tensor]
) -> tuple[TunerState, bool, int, Memory]:
    """The tuner's state, whether it is frozen, how far the run has grown, and copies of what is kept of each parameter, on the
    parameter's device; the inverse of `pack`, exact.

    Raises:
        ResumeError: the checkpoint has nothing of MECHANIC (NOT_MECHANIZED), a newer version wrote it
            (CHECKPOINT_VERSION), its tuner state is damaged (INVALID_TUNER_STATE), or a Δ does not match its parameter
            (DELTA_MISMATCH).
        ConfigMismatch: CONFIG_MISMATCH; `metadata["field"]` names the setting.
    """
    beside = state_dict.get(KEY)
    groups = state_dict.get("param_groups") or [{}]
    saved = groups[0].get(KEY) if beside is None else beside
    if saved is None:
        raise ResumeError(
            "NOT_MECHANIZED",
            'the first param group of this state_dict has no "mechanic": it is from a plain optimizer, or a tool has flattened '
            "it. Load the state_dict of a plain optimizer with opt.base.load_state_dict(); the run then starts with Δ = 0",
        )
    if saved.get("version") != VERSION:
        raise ResumeError(
            "CHECKPOINT_VERSION",
            f"the checkpoint has version {saved.get('version')}, but this program reads version {VERSION}; upgrade mechanicd",
        )
    check_config(saved["config"], plain(config, delta_layout))
    try:
        state = TunerState.from_bytes(base64.b64decode(saved["tuner_state"], validate=True), config)
    except StateError as error:
        raise ResumeError(error.reason, error.message) from None
    except ValueError as error:
        raise ResumeError(StateError.reason, f"the tuner state is not base64 ({error}); use another checkpoint") from None
    memory = Memory(delta_layout)
    for i, entry in _entries(state_dict) if beside is None else beside["params"].items():
        if PLACED in entry:
            if not 0 <= i < len(params):
                raise _misfit(i, entry.get(DELTA, entry.get(REF)), "does not exist")
            _remember(memory, params[i], i, entry)
    return state, bool(saved["frozen"]), int(saved.get("grown", 0)), memory


def random_of(state_dict: Mapping[str, Any]) -> str:
    """What `{random}` in the run's name stood for; "" if the checkpoint does not say."""
    saved = state_dict.get(KEY) or (state_dict.get("param_groups") or [{}])[0].get(KEY) or {}
    return str(saved.get("random", ""))


def check_config(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Checks that a checkpoint's settings are this optimizer's.

    Raises:
        ConfigMismatch: CONFIG_MISMATCH.
    """
    for name, value in here.items():
        if there.get(name) != value:
            raise ConfigMismatch(
                "CONFIG_MISMATCH",
                f"the checkpoint was saved with {name}={there.get(name)!r}, but this optimizer has {name}={value!r}; "
                "call mechanize() with the checkpoint's setting",
                {"field": name},
            )


def plain(config: TunerConfig, delta_layout: str) -> dict[str, Any]:
    """The settings that a checkpoint and its reader must share, as plain values."""
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {**fields, "delta_layout": delta_layout}


def _entries(state_dict: Mapping[str, Any]) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """Each parameter's index and state. torch's tools may replace the indices by names, in the order of the groups."""
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    places = {key: i for i, key in enumerate(keys)}
    for key, entry in state_dict["state"].items():
        if isinstance(entry, Mapping):
            yield places.get(key, key if isinstance(key, int) else -1), entry


def _remember(memory: Memory, p: Tensor, i: int, entry: Mapping[str, Any]) -> None:
    """Puts one parameter's entry into `memory`; the parameter may now be on another device or of another dtype."""
    placed = memory.placed[p] = float(entry[PLACED])
    saved = {name: _distributed.local(entry[name]) for name in (DELTA, REF) if name in entry}
    for tensor in saved.values():
        if tensor.shape != p.shape:
            raise _misfit(i, tensor, f"has the shape {tuple(p.shape)}")
    D = _reference.new_delta(p)
    if memory.keeps_ref(p):
        if REF in saved:
            wide = saved[REF].dtype is D.dtype
            memory.ref[p] = torch.empty_like(p, dtype=D.dtype if wide else p.dtype, requires_grad=False).copy_(saved[REF])
        else:  # saved with another dtype: x − S·Δ is the closest
            there = p.detach().to(torch.float64) - placed * saved[DELTA].to(p.device, torch.float64)
            memory.ref[p] = torch.empty_like(D).copy_(there)
    memory.note(p)
    if DELTA in saved:
        memory.delta[p] = D.copy_(saved[DELTA])
        memory.forget(p)
    elif not memory.recomputes_delta(p):
        there = (p.detach().to(torch.float64) - saved[REF].to(p.device, torch.float64)) / placed
        memory.delta[p] = D.copy_(there)


def _misfit(i: int, tensor: Tensor | None, what: str) -> ResumeError:
    shape = "?" if tensor is None else tuple(tensor.shape)
    return ResumeError(
        "DELTA_MISMATCH",
        f"the checkpoint has a Δ of shape {shape} for parameter {i}, which {what}; "
        "load it into the model that it was saved from",
    )
