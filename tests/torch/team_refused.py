"""Ranks that don't train one model together, that part later, or that don't come: refused by name."""

import copy
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from team_training import (
    STEPS,
    Failure,
    Outcome,
    Refused,
    at,
    average,
    batches,
    mine,
    new_model,
    optimizer,
    rank,
    train,
    world,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mechanicd.client import MechanicdError
from mechanicd.torch import mechanize

# ---- refused at the first step


def independent() -> Outcome:
    model = new_model(seed=rank())
    return train(model, optimizer(model.parameters()), batches())


def not_averaged() -> Outcome:
    model = new_model()
    return train(model, optimizer(model.parameters()), batches())


def join() -> Outcome:
    """Uneven inputs, of which DDP takes care, but only for itself."""
    model = DistributedDataParallel(new_model())
    with model.join():
        found = train(model, optimizer(model.parameters()), batches(), steps=STEPS + rank())
        if "error" in found:
            raise Refused(found)
    return found


def other_shapes() -> Outcome:
    model = new_model(hidden=10 + rank())
    return train(model, optimizer(model.parameters()), batches())


def other_settings() -> Outcome:
    model = new_model()
    return train(model, optimizer(model.parameters(), s_init=1e-4 * (1 + rank())), batches(), averaged=True)


def other_lr() -> Outcome:
    model = new_model()
    return train(model, optimizer(model.parameters(), lr=1.0 + rank()), batches(), averaged=True)


def mesh_of_some() -> Outcome:
    """Each half of the ranks has a mesh of its own, and nobody says so."""
    meshes = init_device_mesh("cpu", (2, world() // 2), mesh_dim_names=("teams", "shard"))
    model = new_model()
    fully_shard(model, mesh=meshes["shard"])
    return train(model, optimizer(model.parameters()), batches())


# ---- found later


def weights_change_on_one_rank() -> Outcome:
    model = new_model()
    after = at(4, lambda: model[2].weight.data.mul_(1.5))
    return train(model, optimizer(model.parameters()), batches(), averaged=True, after=after)


def local_sgd_after_a_while() -> Outcome:
    """The gradients are averaged for four steps, as PostLocalSGD does, and then no more."""
    model = new_model()

    def before(step: int) -> None:
        if step <= 4:
            average(list(model.parameters()))

    return train(model, optimizer(model.parameters()), batches(), before=before)


def one_rank_reloads() -> Outcome:
    """And then all of them do, which mends it."""
    model = new_model()
    opt = optimizer(model.parameters())
    after = at(4, lambda: opt.load_state_dict(opt.state_dict()))
    found = train(model, opt, batches(), averaged=True, after=after)
    opt.load_state_dict(opt.state_dict())
    return {**found, "then": len(train(model, opt, batches(), averaged=True)["scales"])}


def own_plateaus() -> Outcome:
    """A scheduler that looks at each rank's own loss."""
    model = new_model()
    opt = optimizer(model.parameters())
    before = at(4, lambda: opt.param_groups[0].update(lr=0.1))
    return train(model, opt, batches(), averaged=True, before=before)


def frozen_on_one_rank() -> Outcome:
    model = new_model()
    opt = optimizer(model.parameters())
    return train(model, opt, batches(), averaged=True, before=at(4, lambda: setattr(opt, "frozen", True)))


def base_fails_on_one_rank() -> Outcome:
    """The trainer skips a failed step, as many do after running out of memory; the other rank has taken it."""
    model = new_model()
    opt = optimizer(model.parameters())
    take, skipped = opt.base.step, []

    def fail() -> None:
        raise Failure

    params = list(model.parameters())
    scales, data = [], batches()
    for step in range(1, STEPS):
        x, y = next(data)
        opt.zero_grad()
        torch.nn.functional.mse_loss(model(mine(x)), mine(y)).backward()
        average(params)
        opt.base.step = fail if step == 4 and rank() == 1 else take
        try:
            opt.step()
        except Failure:
            skipped.append(step)
        except MechanicdError as error:
            return {"error": error.reason, "said": error.message, "at": step, "skipped": skipped}
        scales.append(opt.scale)
    return {"scales": scales}


def sparse_on_one_rank() -> Outcome:
    model = new_model()

    def spoil() -> None:
        g = model[2].weight.grad
        assert g is not None
        model[2].weight.grad = g.to_sparse()

    return train(model, optimizer(model.parameters()), batches(), averaged=True, before=at(4, spoil))


# ---- ranks that do not come


def only_rank_0() -> Outcome:
    model = new_model()
    opt = optimizer(model.parameters(), rank_timeout=2.0)
    return train(model, opt, batches(), share=False) if rank() == 0 else {}


def all_but_rank_0() -> Outcome:
    model = new_model()
    opt = optimizer(model.parameters(), rank_timeout=1.0)
    return {} if rank() == 0 else train(model, opt, batches(), share=False)


def leaves() -> Outcome:
    """The last rank leaves after four steps, and its process and its optimizer live on."""
    model = new_model()
    opt = optimizer(model.parameters(), rank_timeout=3.0)
    _KEPT.append(opt)
    return train(model, opt, batches(), share=False, steps=4 if rank() == world() - 1 else 8)


def drops() -> Outcome:
    """The last rank's optimizer is gone after four steps, so nobody has to wait for it."""
    model = new_model()
    opt = optimizer(model.parameters(), rank_timeout=20.0)
    return train(model, opt, batches(), share=False, steps=4 if rank() == world() - 1 else 8)


def skips_under_ddp() -> Outcome:
    """A rank leaves out a step, as for a loss that is not finite: its next gradients meet the other rank's sums."""
    group = dist.new_group(timeout=timedelta(seconds=5))
    model = DistributedDataParallel(new_model(), process_group=group)
    return _skip(model, optimizer(model.parameters(), process_group=group, rank_timeout=1.0), lambda: None)


def skips_before_own_collective() -> Outcome:
    """A rank leaves out a step, and the ranks add up their losses after each."""
    group = dist.new_group(timeout=timedelta(seconds=5))
    model = new_model()
    return _skip(
        model,
        optimizer(model.parameters(), process_group=group, rank_timeout=1.0),
        lambda: dist.all_reduce(torch.zeros(1000), group=group),
    )


def shorter_loop() -> Outcome:
    """A rank has fewer batches, and adds up its results of the evaluation."""
    group = dist.new_group(timeout=timedelta(seconds=5))
    model = new_model()
    opt = optimizer(model.parameters(), process_group=group, rank_timeout=1.0)
    _KEPT.append(opt)
    found = _skip(model, opt, lambda: None, steps=STEPS if rank() == 0 else 4)
    if rank() == 1:
        try:
            dist.all_reduce(torch.zeros(1000), group=group)
        except RuntimeError:
            found["then"] = "alone"
    return found


_KEPT: list[Any] = []


def _skip(model: torch.nn.Module, opt: Any, after: Callable[[], object], steps: int = STEPS) -> Outcome:
    """The last rank leaves out step 5. It waits for the other's gradients or losses until its group's time-out."""
    data = batches()
    for step in range(1, steps + 1):
        x, y = next(data)
        opt.zero_grad()
        try:
            torch.nn.functional.mse_loss(model(x), y).backward()
            if step != 5 or rank() == 0:
                opt.step()
            after()
        except MechanicdError as error:
            return {"error": error.reason, "said": error.message, "at": step}
        except RuntimeError:
            return {"error": "of the trainer's own", "at": step}
    return {}


def dies() -> Outcome:
    """The last rank's process ends."""
    model = new_model()
    opt = optimizer(model.parameters(), rank_timeout=20.0)
    return train(model, opt, batches(), share=False, after=at(4, lambda: os._exit(0), world() - 1))


# ---- sharding that is not torch's DTensor


def refusals() -> Outcome:
    """Reasons by name. The marks of packages that are not installed are made up here."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer

    def reason(make: Callable[[], Any]) -> str:
        try:
            make()
        except MechanicdError as error:
            return f"{error.reason}: {error.message}"
        return "taken"

    def marked(**marks: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        for name, value in marks.items():
            setattr(p, name, value)
        return [p]

    flat = [
        FullyShardedDataParallel(new_model(), use_orig_params=original, device_id=torch.device("cpu"))
        for original in (False, True)
    ]
    sharded = new_model()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (world(),)))
    params = list(new_model().parameters())
    fairscale: Any = type("OSS", (torch.optim.SGD,), {"__module__": "fairscale.optim.oss"})
    overlapping = torch.optim.SGD(params, lr=1.0)
    overlapping._overlap_with_ddp = True  # type: ignore[attr-defined]
    local_sgd = PostLocalSGDOptimizer(torch.optim.SGD(params, lr=1.0), None)
    return {
        "fsdp1": reason(lambda: optimizer(flat[0].parameters())),
        "fsdp1 with use_orig_params": reason(lambda: optimizer(flat[1].parameters())),
        "fsdp1 alone": reason(lambda: optimizer(flat[1].parameters(), distributed=False)),
        "dtensor alone": reason(lambda: optimizer(sharded.parameters(), distributed=False)),
        "zero-3": reason(lambda: optimizer(marked(ds_id=1))),
        "megatron": reason(lambda: optimizer(marked(tensor_model_parallel=True))),
        "megatron alone": reason(lambda: optimizer(marked(tensor_model_parallel=True), distributed=False)),
        "megatron as parts": reason(lambda: optimizer(marked(tensor_model_parallel=True), distributed="parts")),
        "expert": reason(lambda: optimizer(marked(allreduce=False))),
        "fairscale": reason(lambda: mechanize(fairscale(params, lr=1.0))),
        "overlapping zero": reason(lambda: mechanize(overlapping)),
        "zero": reason(lambda: mechanize(ZeroRedundancyOptimizer(params, torch.optim.SGD, lr=1.0))),
        "post-local SGD": reason(lambda: mechanize(local_sgd)),
        "a group, alone": reason(lambda: optimizer(params, distributed=False, process_group=dist.group.WORLD)),
        "a wrong word": reason(lambda: optimizer(params, distributed="pipeline")),
        "True": reason(lambda: optimizer(params, distributed=True)),
        "no group": reason(lambda: optimizer(params, process_group="ranks")),
        "a copy": reason(lambda: copy.deepcopy(optimizer(params, process_group=dist.group.WORLD))),
        "no time": reason(lambda: optimizer(params, rank_timeout=0.0)),
    }
