"""Sharding that is not torch's own DTensor: recognised by the marks that each library leaves, and refused by name.

Each rank then holds a piece of the model as plain parameters, and nothing about them says which pieces make up the whole. Where
all ranks' sums are simply added, `distributed="parts"` does that; where even that would be wrong, there is no way.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from mechanicd.client import InvalidArgument

_LIBRARIES: Final = {"deepspeed": "DeepSpeed", "fairscale": "FairScale", "colossalai": "Colossal-AI", "megatron": "Megatron"}
"""Libraries whose optimizers shard, reduce or step by themselves."""


def refuse(base: Optimizer, params: Sequence[Tensor], distributed: object) -> None:
    """Checks that the parameters are not sharded in a way that would give a wrong S.

    Args:
        distributed: as `mechanize` takes it.

    Raises:
        InvalidArgument: SHARDING_NOT_SUPPORTED.
    """
    found = _of_base(base) or next(filter(None, map(_deepspeed, params)), None)
    if found is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        found = next(filter(None, map(_fsdp1, params)), None)
        if found is None and distributed is False:
            found = next(filter(None, map(_dtensor, params)), None)
        if found is None and distributed != "parts":
            found = next(filter(None, map(_parallel, params)), None)
    if found is not None:
        raise InvalidArgument("SHARDING_NOT_SUPPORTED", found)


def _of_base(base: Optimizer) -> str | None:
    for kind in type(base).__mro__:
        library = _LIBRARIES.get(kind.__module__.partition(".")[0])
        if library is not None:
            return (
                f"BASE is {library}'s {kind.__name__}, which spreads its work over the ranks in a way of its own; wrap a plain "
                "optimizer, and shard with torch's fully_shard (FSDP2) or ZeroRedundancyOptimizer"
            )
    if type(base).__module__ == "torch.distributed.optim.post_localSGD_optimizer":
        return (
            "PostLocalSGDOptimizer averages the weights inside its step, and S would scale that as an update; mechanize the "
            "optimizer that it wraps, with distributed=False"
        )
    if getattr(base, "_overlap_with_ddp", False):
        return "ZeroRedundancyOptimizer(overlap_with_ddp=True) takes its step inside backward(); use overlap_with_ddp=False"
    return None


def _deepspeed(p: Any) -> str | None:
    if not hasattr(p, "ds_id"):
        return None
    return "DeepSpeed's ZeRO-3 has taken the parameters apart (ds_id); use torch's fully_shard (FSDP2)"


def _fsdp1(p: Any) -> str | None:
    if not getattr(p, "_fsdp_flattened", False):
        return None
    return "FullyShardedDataParallel (FSDP1) has flattened the parameters; use torch.distributed.fsdp.fully_shard (FSDP2)"


def _dtensor(p: Any) -> str | None:
    mesh = getattr(p, "device_mesh", None)
    if mesh is None or mesh.size() == 1:
        return None
    return (
        f"distributed=False, but a parameter of shape {tuple(p.shape)} is a DTensor over {mesh.size()} ranks, which must share "
        "one S; leave `distributed` out"
    )


def _parallel(p: Any) -> str | None:
    """Megatron's marks, which others have taken over: a shard of a tensor; a parameter that not all ranks hold (an expert)."""
    if getattr(p, "tensor_model_parallel", False):
        what = "a shard of a tensor (tensor_model_parallel)"
    elif getattr(p, "allreduce", True) is False or getattr(p, "is_expert", False) or getattr(p, "expert_parallel", False):
        what = "an expert that not all ranks hold (allreduce, is_expert or expert_parallel)"
    else:
        return None
    return (
        f'a parameter of shape {tuple(p.shape)} is {what}; pass distributed="parts", with a process_group of all ranks '
        "that hold a part of the model"
    )
