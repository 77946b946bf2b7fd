"""One rank of a small training: `torchrun` in a few lines, for tests.

    python distributed_training.py KIND RANK WORLD PORT TARGET RUN OUT

KIND is single, ddp, zero, fsdp or tp. Each rank sees its part of every batch (under tp the whole); OUT.RANK gets S after each
step and the parameters. With "_resume", everything is saved halfway by torch.distributed.checkpoint and loaded into a new one.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from mechanicd.torch import mechanize

STEPS, BATCH = 40, 32


def build(kind: str, world: int, target: str, run: str) -> tuple[Any, Any]:
    """The model, spread as KIND says, and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 34), torch.nn.Tanh(), torch.nn.Linear(34, 3)).double()
    if kind == "ddp" or kind == "zero":
        model = torch.nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model[0], mesh=mesh)  # the last layer stays with the root
        fully_shard(model, mesh=mesh)
    elif kind == "tp":
        mesh = init_device_mesh("cpu", (world,))
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    if kind == "zero":
        base = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1.0)
    else:
        base = torch.optim.AdamW(model.parameters(), lr=1.0)
    return model, mechanize(base, run=run, target=target if target != "none" else None, s_init=1e-4)


def through_a_checkpoint(model: Any, opt: Any, again: tuple[Any, Any], folder: str) -> tuple[Any, Any]:
    """A new model and optimizer with all that the old ones had, by torch.distributed.checkpoint."""
    model_state, optimizer_state = get_state_dict(model, opt)
    dcp.save({"model": model_state, "opt": optimizer_state}, checkpoint_id=folder)
    opt.close("preempted")
    model, opt = again
    model_state, optimizer_state = get_state_dict(model, opt)
    loaded = {"model": model_state, "opt": optimizer_state}
    dcp.load(loaded, checkpoint_id=folder)
    set_model_state_dict(model, loaded["model"])
    set_optimizer_state_dict(model, opt, loaded["opt"])
    return model, opt


def main() -> None:
    kind, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    target, run, out = sys.argv[5], sys.argv[6], Path(sys.argv[7])
    kind, _, resume = kind.partition("_")
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[4]}", rank=rank, world_size=world)
    model, opt = build(kind, world, target, run)
    scales = []
    make = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        x = torch.randn(BATCH, 8, generator=make, dtype=torch.float64)
        y = torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2], x[:, 3]], 1)
        here = slice(0, BATCH) if kind == "tp" else slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        if resume and step == STEPS // 2 + 5:
            model, opt = through_a_checkpoint(model, opt, build(kind, world, target, run), f"{out}.checkpoint")
        opt.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x[here]), y[here])
        nan = step == 20 and (rank == world - 1 or kind == "tp")
        (loss * (float("nan") if nan else 1.0)).backward()
        opt.step()
        scales.append(opt.scale)
    opt.flush()
    opt.close()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    torch.save({"run": opt.run, "scales": scales, "params": [p.detach().clone() for p in whole]}, f"{out}.{rank}")
    if world > 1:
        dist.destroy_process_group()
        # gloo's threads, when they want Python while it ends, now and then end a process that has done all by std::terminate.
        os._exit(0)


if __name__ == "__main__":
    main()
