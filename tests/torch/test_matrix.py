"""Every BASE with every dtype, layout and grouping, and in the loops that people write: it trains, and S is the Reference's."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from mechanicd.demo.lion import Lion
from mechanicd.torch import mechanize
from mechanicd.tuner import Reductions, Tuner, TunerConfig

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1.0),
    "momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=1.0, fused=True),
    "lion": lambda p: Lion(p, lr=1.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.0),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1.0),
    "muon": lambda p: torch.optim.Muon(p, lr=1.0),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
S_INIT = 1e-4
STEPS, COMPARED = 80, 20


@pytest.fixture(scope="module")
def digits():
    """256 real digits of 8 × 8, and what they are."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels[:256] / 16.0 - 0.5), torch.tensor(labels[:256])


def network(dtype):
    """Matrices alone, since Muon takes nothing else."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 16, bias=False), torch.nn.Tanh(), torch.nn.Linear(16, 10, bias=False))
    return model.double().to(dtype)


def param_groups(model):
    return [{"params": [model[0].weight]}, {"params": [model[2].weight]}]


def gradient(model, digits, step, parts=1):
    """Of one quarter of the digits, in so many parts; the loss."""
    pixels, labels = (part.chunk(4)[step % 4] for part in digits)
    total = 0.0
    for x, y in zip(pixels.chunk(parts), labels.chunk(parts), strict=True):
        loss = cross_entropy(model(x.to(model[0].weight.dtype)).float(), y) / parts
        loss.backward()
        total += loss.item()
    return total


class Naive:
    """MECHANIC as the paper has it, tensor by tensor, with copies of everything and one tuner a scale group."""

    def __init__(self, base, groups):
        self.base, self.groups = base, groups
        self.tuner = Tuner(TunerConfig(s_init=S_INIT, scale_groups=[str(i) for i in range(len(groups))]))
        self.state = self.tuner.init()
        self.ref = {p: p.detach().clone() for group in groups for p in group}
        wide = {torch.bfloat16: torch.float32}
        self.delta = {p: torch.zeros_like(x, dtype=wide.get(x.dtype, x.dtype)) for p, x in self.ref.items()}

    @torch.no_grad()
    def step(self):
        def dot(group, one, other):
            return sum(float((one(p).double() * other(p).double()).sum()) for p in group)

        def D(p):
            return self.delta[p]

        def g(p):
            return p.grad

        def x(p):
            return p.detach()

        reductions = [Reductions(dot(q, D, g), dot(q, D, x), dot(q, g, g), dot(q, x, x)) for q in self.groups]
        before = {p: p.detach().clone() for p in self.ref}
        self.base.step()
        self.state = self.tuner.update(self.state, reductions)
        for group, S in zip(self.groups, self.state.scale, strict=True):
            for p in group:
                self.delta[p] += p.to(self.delta[p].dtype) - before[p].to(self.delta[p].dtype)
                p.copy_(self.ref[p].to(self.delta[p].dtype) + S * self.delta[p])


@pytest.mark.parametrize("groups", ["all", "param_group", "tensor"])
@pytest.mark.parametrize("layout", ["delta", "delta+ref", "ref"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("base", BASES)
def test_it_trains_and_s_is_the_references(base, dtype, layout, groups, digits):
    model, other = network(dtype), network(dtype)
    opt = mechanize(BASES[base](param_groups(model)), s_init=S_INIT, delta_layout=layout, scale_groups=groups)
    first, second = (group["params"] for group in param_groups(other))
    naive = Naive(BASES[base](param_groups(other)), [first + second] if groups == "all" else [first, second])
    # Δ made anew from x is as good as x is; in float32 that is not good at all (DESIGN.md: up to 18 %).
    exact = layout != "ref" or dtype is not torch.float32
    losses = []
    for step in range(STEPS):
        opt.zero_grad()
        losses.append(gradient(model, digits, step))
        opt.step()
        if exact and step < COMPARED:
            other.zero_grad()
            gradient(other, digits, step)
            naive.step()
            assert opt.scales == pytest.approx(naive.state.scale, rel=1e-7 if dtype is torch.float64 else 1e-2), f"step {step}"
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8]), losses


def plain(model, opt, digits, step):
    opt.zero_grad()
    gradient(model, digits, step)
    opt.step()


def closure(model, opt, digits, step):
    def evaluate():
        opt.zero_grad()
        return gradient(model, digits, step)

    opt.step(evaluate)


def accumulated(model, opt, digits, step):
    opt.zero_grad()
    gradient(model, digits, step, parts=4)
    opt.step()


def clipped(model, opt, digits, step):
    opt.zero_grad()
    gradient(model, digits, step)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
    opt.step()


def compiled(model, opt, digits, step):
    if not hasattr(opt, "compiled"):
        opt.compiled = torch.compile(model, backend="aot_eager")
    opt.zero_grad()
    pixels, labels = (part.chunk(4)[step % 4] for part in digits)
    cross_entropy(opt.compiled(pixels.to(torch.float32)), labels).backward()
    opt.step()


def scaled(model, opt, digits, step):
    """With a GradScaler whose scale is a power of two, and a step that overflows, which never was."""
    if not hasattr(opt, "scaler"):
        opt.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6, backoff_factor=1.0 - 2.0**-24)
    for factor in [float("inf"), 1.0] if step == 7 else [1.0]:
        opt.zero_grad()
        pixels, labels = (part.chunk(4)[step % 4] for part in digits)
        opt.scaler.scale(cross_entropy(model(pixels.float()), labels) * factor).backward()
        opt.scaler.step(opt)
        opt.scaler.update(2.0**10)


def scheduled(model, opt, digits, step):
    if not hasattr(opt, "scheduler"):
        opt.scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)
    plain(model, opt, digits, step)
    opt.scheduler.step()


def frozen_part(model, opt, digits, step):
    """A parameter that is frozen from the start, and is thawed after the steps that are compared."""
    if step == 0:
        opt.extra = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        opt.add_param_group({"params": [opt.extra]})
    plain(model, opt, digits, step)
    assert torch.equal(opt.extra, torch.ones(3))


def copied(model, opt, digits, step):
    """The optimizer is copied with its model in each step, and the copy thrown away after a step of its own."""
    if step == 5:
        twin, twins_opt = copy.deepcopy((model, opt))
        plain(twin, twins_opt, digits, step)
    plain(model, opt, digits, step)


LOOPS = [closure, accumulated, clipped, compiled, scaled, scheduled, frozen_part, copied]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
@pytest.mark.parametrize("base", ["momentum", "adamw", "adam-fused", "lion", "adafactor"])
def test_every_loop_is_the_plain_loop(base, loop, digits):
    model, other = network(torch.float32), network(torch.float32)
    opt = mechanize(BASES[base](model.parameters()), s_init=S_INIT)
    reference = mechanize(BASES[base](other.parameters()), s_init=S_INIT)
    for step in range(COMPARED):
        loop(model, opt, digits, step)
        plain(other, reference, digits, step)
        assert opt.scale == pytest.approx(reference.scale, rel=1e-2), f"step {step}"
    assert opt.scale > S_INIT


@pytest.mark.parametrize(
    "make",
    [
        lambda opt: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=7),
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=COMPARED + 1),
        lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=2),
    ],
    ids=["warm-restarts", "one-cycle", "plateau"],
)
def test_a_scheduler_sets_what_it_would_set_of_base_alone(make, digits):
    lrs = []
    for wrap in (lambda base: mechanize(base, s_init=S_INIT), lambda base: base):
        opt = wrap(torch.optim.AdamW(network(torch.float32).parameters(), lr=1.0))
        scheduler, seen = make(opt), []
        for step in range(COMPARED):
            model = network(torch.float32)
            opt.zero_grad()
            gradient(model, digits, step)
            opt.step()
            scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
            seen.append(opt.param_groups[0]["lr"])
        lrs.append(seen)
    assert lrs[0] == lrs[1]
    assert len(set(lrs[0])) > 2
