"""Ranks that hold replicas, shards or parts of one model: they find the S of one process."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from team_training import (
    BATCH,
    STEPS,
    Outcome,
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
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from mechanicd.client import MechanicdError
from mechanicd.torch import mechanize


def whole() -> Outcome:
    """What one process does with all of the data."""
    model = new_model()
    return train(model, optimizer(model.parameters()), batches(), share=False)


def ddp() -> Outcome:
    model = DistributedDataParallel(new_model())
    return train(model, optimizer(model.parameters()), batches())


def ddp_mechanized_first() -> Outcome:
    """The optimizer is made before the process group."""
    store = dist.distributed_c10d._get_default_store()
    here, ranks = rank(), world()
    dist.destroy_process_group()
    model = new_model()
    opt = optimizer(model.parameters())
    dist.init_process_group("gloo", store=dist.PrefixStore("again", store), rank=here, world_size=ranks)
    return train(DistributedDataParallel(model), opt, batches())


def late_group() -> Outcome:
    """The process group comes when each rank has trained by itself for a while; a checkpoint brings them together."""
    store = dist.distributed_c10d._get_default_store()
    here, ranks = rank(), world()
    dist.destroy_process_group()
    model = new_model()
    opt = optimizer(model.parameters())
    data = batches()
    first = train(model, opt, data, share=False, steps=6)
    dist.init_process_group("gloo", store=dist.PrefixStore("again", store), rank=here, world_size=ranks)
    refused = train(model, opt, batches(7), steps=1)
    opt.load_state_dict(opt.state_dict())
    rest = train(model, opt, data, averaged=True, steps=6)
    return {**rest, "scales": first["scales"] + rest["scales"], "refused": refused["error"]}


def by_hand() -> Outcome:
    model = new_model()
    return train(model, optimizer(model.parameters()), batches(), averaged=True)


def own_collectives() -> Outcome:
    """The ranks add up a metric, one of them before its step and the other after."""
    model = new_model()
    opt, works = optimizer(model.parameters()), []

    def before(step: int) -> None:
        works[:] = [dist.all_reduce(torch.zeros(1000), async_op=True)] if rank() == 0 else []

    def after(step: int) -> None:
        for work in works or [dist.all_reduce(torch.zeros(1000), async_op=True)]:
            work.wait()

    return train(model, opt, batches(), averaged=True, before=before, after=after)


def join_that_throws() -> Outcome:
    model = DistributedDataParallel(new_model())
    with model.join(throw_on_early_termination=True):
        return train(model, optimizer(model.parameters()), batches())


def slow_rank() -> Outcome:
    """One rank comes late, but in time."""
    model = new_model()
    opt = optimizer(model.parameters())
    return train(model, opt, batches(), averaged=True, before=at(4, lambda: time.sleep(2.5)))


def unused_parameter() -> Outcome:
    """A parameter that no rank uses."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = new_model()
            self.spare = torch.nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.used(x)
            return found

    model = DistributedDataParallel(Model(), find_unused_parameters=True)
    return train(model, optimizer(model.parameters()), batches())


def warm_up() -> Outcome:
    """lr = 0 at first: the run starts later, on all ranks together."""
    return _warm_up(DistributedDataParallel(new_model()))


def warm_up_alone() -> Outcome:
    return _warm_up(new_model())


def _warm_up(model: torch.nn.Module) -> Outcome:
    opt = optimizer(model.parameters(), lr=0.0)

    def lr(step: int) -> None:
        opt.param_groups[0]["lr"] = 0.0 if step < 4 else 1.0

    found = train(model, opt, batches(), before=lr)
    return {**found, "taken": opt.last_step}


def zero_gradients_first() -> Outcome:
    """Independent models of the same start whose first gradients are 0: that says nothing yet."""
    model = new_model()

    def zero(step: int) -> None:
        for p in model.parameters():
            if step == 1 and p.grad is not None:
                p.grad.zero_()

    return train(model, optimizer(model.parameters()), batches(), before=zero)


def fsdp() -> Outcome:
    """Uneven shards: 10 rows and 3 rows over the ranks."""
    model = new_model()
    mesh = init_device_mesh("cpu", (world(),))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return train(model, optimizer(model.parameters()), batches())


def hsdp() -> Outcome:
    model = new_model()
    mesh = init_device_mesh("cpu", (2, world() // 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh)
    return train(model, optimizer(model.parameters()), batches())


def tp_and_fsdp() -> Outcome:
    """A mesh of two dimensions; the last layer is sharded along one of them."""
    model = new_model()
    mesh = init_device_mesh("cpu", (2, world() // 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(output_layouts=torch.distributed.tensor.Replicate())})
    parallelize_module(model, mesh["tp"], {"2": ColwiseParallel(output_layouts=torch.distributed.tensor.Replicate())})
    fully_shard(model, mesh=mesh["dp"])
    dp = mesh["dp"].get_local_rank()
    both = ((x[dp * 8 : dp * 8 + 8], y[dp * 8 : dp * 8 + 8]) for x, y in batches())
    return train(model, optimizer(model.parameters()), both, share=False)


def alone() -> Outcome:
    """Independent models, a sweep over seeds: each as if it were alone."""
    model = new_model(seed=rank())
    return train(model, optimizer(model.parameters(), distributed=False), batches(rank()), share=False)


def gan() -> Outcome:
    """Two models, two optimizers and a group of its own for each."""
    models = [new_model(seed) for seed in (0, 1)]
    groups = [dist.new_group(list(range(world()))) for _ in models]
    opts = [optimizer(m.parameters(), process_group=g) for m, g in zip(models, groups, strict=True)]
    found: Outcome = {}
    data = [batches(1), batches(2)]
    for _ in range(4):
        for i, (model, opt) in enumerate(zip(models, opts, strict=True)):
            found.setdefault(str(i), []).extend(train(model, opt, data[i], averaged=True, steps=1)["scales"])
    return found


def two_teams() -> Outcome:
    """Each half of the ranks trains a model of its own."""
    teams = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    team = teams[rank() // 2]
    model = DistributedDataParallel(new_model(seed=rank() // 2), process_group=team)
    opt = optimizer(model.parameters(), process_group=team)
    half = slice(rank() % 2 * 8, rank() % 2 * 8 + 8)
    found = train(model, opt, ((x[half], y[half]) for x, y in batches(rank() // 2)), share=False)
    try:
        optimizer(new_model().parameters(), process_group=teams[1 - rank() // 2])
    except MechanicdError as error:
        found["not a member"] = error.reason
    return found


def team_of() -> Outcome:
    """What one process does with the data of `two_teams`, and of `alone`."""
    found = {}
    for seed in (0, 1):
        model = new_model(seed=seed)
        found[str(seed)] = train(model, optimizer(model.parameters()), batches(seed), share=False)["scales"]
    return found


class Stages:
    """A pipeline: even ranks hold the first layer, odd ones the last; more than two ranks are replicas of both."""

    def __init__(self, **settings: Any) -> None:
        model = new_model()
        self.first = rank() % 2 == 0
        self.stage = torch.nn.Sequential(model[0], model[1]) if self.first else model[2]
        self.settings = settings

    def train(self, frozen: int | None = None, steps: int = STEPS) -> Outcome:
        params = list(self.stage.parameters())
        for p in params:
            p.requires_grad_(frozen != rank())
        opt = optimizer(params, **self.settings)
        replicas = [dist.new_group(list(range(stage, world(), 2))) for stage in (0, 1)][rank() % 2]
        place, places = rank() // 2, world() // 2
        scales: list[float] = []
        data = batches()
        for _ in range(steps):
            x, y = (t[place * BATCH // places : (place + 1) * BATCH // places] for t in next(data))
            opt.zero_grad()
            if self.first:
                h = self.stage(x)
                dist.send(h.detach(), rank() + 1)
                back = torch.empty_like(h)
                dist.recv(back, rank() + 1)
                if h.requires_grad:
                    h.backward(back)
            else:
                h = torch.empty(x.shape[0], 10, dtype=torch.float64)
                dist.recv(h, rank() - 1)
                h.requires_grad_()
                torch.nn.functional.mse_loss(self.stage(h), y).backward()
                assert h.grad is not None
                dist.send(h.grad, rank() - 1)
            average(params, replicas)
            try:
                opt.step()
            except MechanicdError as error:
                return {"error": error.reason, "said": error.message, "at": len(scales) + 1}
            scales.append(opt.scale)
        return {"scales": scales}


def pipeline_of_shards() -> Outcome:
    """Two stages, each sharded over two ranks by FSDP2 on a mesh of its own."""
    meshes = init_device_mesh("cpu", (2, world() // 2), mesh_dim_names=("stage", "shard"))
    model, first, peer = new_model(), rank() < 2, (rank() + 2) % 4
    stage = torch.nn.Sequential(model[0], model[1]) if first else model[2]
    fully_shard(stage, mesh=meshes["shard"])
    opt = optimizer(stage.parameters(), distributed="parts")
    scales, data, half = [], batches(), slice(rank() % 2 * 8, rank() % 2 * 8 + 8)
    for _ in range(STEPS):
        x, y = (t[half] for t in next(data))
        opt.zero_grad()
        if first:
            h = stage(x)
            dist.send(h.detach(), peer)
            back = torch.empty_like(h)
            dist.recv(back, peer)
            h.backward(back)
        else:
            h = torch.empty(8, 10, dtype=torch.float64)
            dist.recv(h, peer)
            h.requires_grad_()
            torch.nn.functional.mse_loss(stage(h), y).backward()
            assert h.grad is not None
            dist.send(h.grad, peer)
        opt.step()
        scales.append(opt.scale)
    return {"scales": scales}


def pipeline() -> Outcome:
    return Stages(distributed="parts").train()


def pipeline_by_default() -> Outcome:
    return Stages().train()


def pipeline_frozen() -> Outcome:
    """The first stage is frozen, so its rank has no gradient at all."""
    return Stages(distributed="parts").train(frozen=0)


def whole_frozen() -> Outcome:
    model = new_model()
    model[0].requires_grad_(False)
    return train(model, optimizer([p for p in model.parameters() if p.requires_grad]), batches(), share=False)


def tensor_parallel_by_hand() -> Outcome:
    """Each rank holds half of the hidden units; the last bias is on both."""
    model = new_model()
    half = slice(rank() * 5, rank() * 5 + 5)
    W, b, V = model[0].weight[half], model[0].bias[half], model[2].weight[:, half]
    params = [torch.nn.Parameter(p.detach().clone()) for p in (W, b, V, model[2].bias)]
    opt = optimizer(params, distributed="parts")
    scales, data = [], batches()
    for _ in range(STEPS):
        x, y = next(data)
        opt.zero_grad()
        part = torch.tanh(x @ params[0].T + params[1]) @ params[2].T
        total = part.detach().clone()
        dist.all_reduce(total)
        torch.nn.functional.mse_loss(total - part.detach() + part + params[3], y).backward()
        opt.step()
        scales.append(opt.scale)
    return {"scales": scales}


def parts_that_are_replicas() -> Outcome:
    model = DistributedDataParallel(new_model())
    return train(model, optimizer(model.parameters(), distributed="parts"), batches())


def all_reload() -> Outcome:
    """All ranks go back to a checkpoint together, in a new process group."""
    model = new_model()
    opt = optimizer(model.parameters())
    data = batches()
    first = train(model, opt, data, averaged=True, steps=6)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    train(model, opt, batches(7), averaged=True, steps=2)
    store = dist.distributed_c10d._get_default_store()
    here, ranks = rank(), world()
    dist.destroy_process_group()
    lost = train(model, opt, batches(7), share=False, steps=1)
    dist.init_process_group("gloo", store=dist.PrefixStore("again", store), rank=here, world_size=ranks)
    model.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    rest = train(model, opt, data, averaged=True, steps=6)
    dist.destroy_process_group()
    opt.close()
    return {"scales": first["scales"] + rest["scales"], "lost": lost["error"]}


def without_a_store() -> Outcome:
    """As with MPI, which has none."""
    backends = dist.distributed_c10d._world.pg_map
    world = dist.group.WORLD
    assert world is not None
    name, store = backends[world]
    backends[world] = name, None  # type: ignore[assignment]
    found = by_hand()
    backends[world] = name, store
    return found


def _grow(ranks: Sequence[int], together: bool, **settings: Any) -> Outcome:
    """The last layer joins amid the run, on some ranks, with an S of its own."""
    model = new_model()
    opt = optimizer(model[0].parameters(), scale_groups="param_group", **settings)
    scales: list[float] = []

    def after(step: int) -> None:
        scales.extend(opt.scales)
        if step == 4 and rank() in ranks:
            opt.add_param_group({"params": list(model[2].parameters())})

    one_s = type("OneS", (), {"zero_grad": opt.zero_grad, "step": opt.step, "scale": 0.0})()
    found = train(model, one_s, batches(), share=together, averaged=together, after=after)
    return {**found, "scales": scales}


def grows() -> Outcome:
    return _grow((0, 1), together=True)


def whole_grows() -> Outcome:
    return _grow((0,), together=False)


def grows_on_one_rank() -> Outcome:
    return _grow((1,), together=True, rank_timeout=2.0)


class Sam(torch.optim.SGD):
    """Moves up the gradient, evaluates there, and steps from where it was."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params:
                p += 0.05 * p.grad
        loss = closure()
        with torch.no_grad():
            for p, x in zip(params, before, strict=True):
                p.copy_(x)
        super().step()
        return loss


def _sam(share: bool) -> Outcome:
    model = new_model()
    params = list(model.parameters())
    opt = mechanize(Sam(params, lr=1.0), s_init=1e-4)
    scales, data = [], batches()
    for _ in range(STEPS):
        x, y = (mine(t) if share else t for t in next(data))

        def evaluate(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            if share:
                average(params)
            return loss

        evaluate()
        opt.step(evaluate)
        scales.append(opt.scale)
    return {"scales": scales}


def sam() -> Outcome:
    """BASE calls its closure where it likes, which takes a few more words between the ranks."""
    return _sam(share=True)


def whole_sam() -> Outcome:
    return _sam(share=False)
