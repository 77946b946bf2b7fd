"""One rank of a small training: `torchrun` in a few lines, for tests.

    python distributed_training.py KIND RANK WORLD PORT TARGET RUN OUT

KIND is single, ddp, zero or fsdp. Each rank sees its part of every batch; OUT.RANK gets S after each step and the parameters.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

from mechanicd.torch import mechanize

STEPS, BATCH = 40, 32


def main() -> None:
    kind, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    target, run, out = sys.argv[5], sys.argv[6], Path(sys.argv[7])
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[4]}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 33), torch.nn.Tanh(), torch.nn.Linear(33, 3)).double()
    if kind == "ddp" or kind == "zero":
        model = torch.nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model[0], mesh=mesh)  # the last layer stays with the root
        fully_shard(model, mesh=mesh)
    if kind == "zero":
        base = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1.0)
    else:
        base = torch.optim.AdamW(model.parameters(), lr=1.0)
    opt = mechanize(base, run=run, target=target if target != "none" else None, s_init=1e-4)
    scales = []
    make = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        x = torch.randn(BATCH, 8, generator=make, dtype=torch.float64)
        y = torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2], x[:, 3]], 1)
        here = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        opt.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x[here]), y[here])
        (loss * (float("nan") if step == 20 and rank == world - 1 else 1.0)).backward()
        opt.step()
        scales.append(opt.scale)
    opt.flush()
    opt.close()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    torch.save({"scales": scales, "params": [p.detach().clone() for p in whole]}, f"{out}.{rank}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
