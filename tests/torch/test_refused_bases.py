"""BASEs that can't be right under a learned S are refused by name in `mechanize`; their likes are taken."""

import itertools
import warnings

import pytest
import torch

from mechanicd.client import InvalidArgument, Session
from mechanicd.torch import mechanize
from tests.torch.own_bases import SAM, Wrapper, adding, copies, same


@pytest.fixture
def sent(monkeypatch):
    """The reductions of every step, as the session gets them."""
    seen = []
    begin = Session.begin
    monkeypatch.setattr(Session, "begin", lambda self, r, **kw: seen.append(list(r)) or begin(self, r, **kw))
    return seen


def refused(base):
    with pytest.raises(InvalidArgument) as caught:
        mechanize(base)
    return caught.value.reason


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_differentiable_is_refused(base, problem):
    assert refused(base(problem.params, lr=1.0, differentiable=True)) == "BASE_DIFFERENTIABLE"


def test_a_differentiable_group_is_refused_whenever_it_comes(problem):
    groups = [{"params": problem.params[:2]}, {"params": problem.params[2:], "differentiable": True}]
    assert refused(torch.optim.SGD(groups, lr=1.0)) == "BASE_DIFFERENTIABLE"
    opt = mechanize(torch.optim.SGD(problem.params[:2], lr=1.0))
    with pytest.raises(InvalidArgument, match="BASE_DIFFERENTIABLE"):
        opt.add_param_group({"params": problem.params[2:], "differentiable": True})
    assert len(opt.param_groups) == 1


class Released(torch.optim.SGD):
    """Steps during backward, as LOMO does."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for p in self.param_groups[0]["params"]:
            p.register_post_accumulate_grad_hook(self.update)

    def update(self, p):
        p.data.add_(p.grad, alpha=-self.param_groups[0]["lr"])
        p.grad = None


def in_backward(params):
    """As torch's tutorial has it: one optimizer a parameter, stepped by a hook."""
    each = {p: torch.optim.SGD([p], lr=1.0) for p in params}

    def hook(p):
        each[p].step()
        each[p].zero_grad()

    for p in params:
        p.register_post_accumulate_grad_hook(hook)


def test_steps_in_backward_are_refused(new_problem):
    problem = new_problem()
    assert refused(Released(problem.params, lr=1.0)) == "BASE_STEPS_IN_BACKWARD"

    problem = new_problem()
    base = torch.optim.SGD(problem.params, lr=1.0)
    for p in problem.params:
        p.register_hook(lambda g: base.step())  # a hook of the gradient, as AdaLOMO's
    assert refused(base) == "BASE_STEPS_IN_BACKWARD"

    problem = new_problem()
    in_backward(problem.params)
    assert refused(torch.optim.AdamW(problem.params, lr=1.0)) == "BASE_STEPS_IN_BACKWARD"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is written in TorchScript
        from torch.distributed.optim import _apply_optimizer_in_backward
    problem = new_problem()
    _apply_optimizer_in_backward(torch.optim.SGD, problem.params, {"lr": 1.0})
    assert refused(torch.optim.AdamW(problem.params, lr=1.0)) == "BASE_STEPS_IN_BACKWARD"

    problem = new_problem()
    group = {"params": problem.params, "gradient_release": True}
    assert refused(torch.optim.AdamW([group], lr=1.0)) == "BASE_STEPS_IN_BACKWARD"


def test_a_hook_that_comes_later_is_refused_by_the_first_step(problem):
    base = torch.optim.SGD(problem.params, lr=1.0)
    opt = mechanize(base)
    problem.params[0].register_post_accumulate_grad_hook(lambda p: base.step())
    problem.params[0].grad = torch.ones_like(problem.params[0])
    with pytest.raises(InvalidArgument, match="BASE_STEPS_IN_BACKWARD"):
        opt.step()


def test_hooks_that_step_nothing_are_welcome(problem):
    norms = []
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))
    for p in problem.params:
        p.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad.norm() * opt.base.param_groups[0]["lr"]))
        p.register_hook(lambda g: g.clamp(-1.0, 1.0))
    problem.backward()
    opt.step()
    assert len(norms) == 4
    each = {p: mechanize(torch.optim.SGD([p], lr=1.0)) for p in problem.params}  # with S in backward: right
    problem.params[0].register_post_accumulate_grad_hook(lambda p: each[p].step())
    problem.backward()
    for one in each.values():
        one.step()


class Lookahead(torch.optim.Optimizer):
    """Draws the weights to slow ones in every second step; they are in a list of its own."""

    def __init__(self, inner):
        self.inner, self.t = inner, 0
        super().__init__([p for group in inner.param_groups for p in group["params"]], inner.defaults)
        self.slow = []

    @torch.no_grad()
    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"]]
        self.slow = self.slow or copies(params)
        loss = self.inner.step(closure)
        self.t += 1
        if self.t % 2 == 0:
            for p, slow in zip(params, self.slow, strict=True):
                p.copy_(slow.lerp_(p, 0.5))
        return loss


class Slowly(Lookahead):
    """The same by another name."""


class Averaging(torch.optim.SGD):
    """Keeps an average of the weights for evaluation."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for p in itertools.chain(*(group["params"] for group in self.param_groups)):
            average = self.state[p].setdefault("average", p.detach().clone())
            average.lerp_(p.detach(), 0.01)
        return loss


class Anchored(torch.optim.SGD):
    """Dual averaging: every step starts from the first weights."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for p in itertools.chain(*(group["params"] for group in self.param_groups)):
            if p.grad is not None:
                start = self.state[p].setdefault("start", p.detach().clone())
                total = self.state[p].setdefault("sum", torch.zeros_like(p))
                p.copy_(start - total.add_(p.grad))
        return loss


class Master(torch.optim.SGD):
    """Keeps float32 masters, made at the start."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.masters = [p.detach().clone() for p in self.param_groups[0]["params"]]


KEEPERS = {
    "lookahead": lambda p: Lookahead(torch.optim.SGD(p, lr=1.0)),
    "by another name": lambda p: Slowly(torch.optim.AdamW(p, lr=1.0)),
    "average": lambda p: Averaging(p, lr=1.0),
    "dual averaging": lambda p: Anchored(p, lr=1.0),
    "masters": lambda p: Master(p, lr=1.0),
}


@pytest.mark.parametrize("base", KEEPERS)
def test_a_base_that_remembers_where_the_weights_were_is_refused(base, new_problem):
    assert refused(KEEPERS[base](new_problem(torch.float32).params)) == "BASE_KEEPS_WEIGHTS"


@pytest.mark.parametrize(
    "name", ["schedulefree.AdamWScheduleFree", "schedulefree.SGDScheduleFree", "prodigyopt.Prodigy", "dadaptation.DAdaptAdam"]
)
def test_those_of_other_packages_are_refused(name, new_problem):
    package, _, cls = name.partition(".")
    base = getattr(pytest.importorskip(package), cls)(new_problem(torch.float32).params)
    assert refused(base) == "BASE_KEEPS_WEIGHTS"


def test_lbfgs_is_refused(problem):
    """Its curvature is that between the end of its own last step and the next x, where S has put it."""
    assert refused(torch.optim.LBFGS(problem.params, lr=1.0, line_search_fn="strong_wolfe")) == "BASE_KEEPS_WEIGHTS"


def test_sparse_adam_is_refused_at_once(problem):
    assert refused(torch.optim.SparseAdam(problem.params, lr=1.0)) == "SPARSE_GRADIENT"


def test_the_refusal_says_which_way_round(problem):
    with pytest.raises(InvalidArgument, match=r"Lookahead\(mechanize\("):
        mechanize(KEEPERS["lookahead"](problem.params))


@pytest.mark.parametrize("layout", ["delta", "delta+ref"])
def test_lookahead_around_a_mechanized_optimizer_trains(layout, new_problem):
    problem = new_problem()
    inner = mechanize(torch.optim.AdamW(problem.params, lr=1.0), s_init=1e-4, delta_layout=layout)
    opt, first = Lookahead(inner), problem.loss(problem.params).item()
    for _ in range(100):
        problem.backward()
        opt.step()
    assert problem.loss(problem.params).item() < 0.7 * first
    assert inner.scale > 1e-3


class Lamb(torch.optim.SGD):
    """Reads x_t, as a BASE may: it scales its steps by the weights' norm, and its momentum holds an L2 penalty."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for p in itertools.chain(*(group["params"] for group in self.param_groups)):
            if p.grad is not None:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad + 0.01 * p, 0.1)
                p.sub_(m * (p.norm() / (m.norm() + 1e-8)))
        return loss


class Plain(torch.optim.Optimizer):
    """A step without a closure, and random numbers."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1.0})

    @torch.no_grad()
    def step(self):
        for p in itertools.chain(*(group["params"] for group in self.param_groups)):
            if p.grad is not None:
                p.sub_(p.grad * torch.rand_like(p))


TRUE_BASES = {
    "reads x_t": lambda p: Lamb(p, lr=1.0),
    "weight decay in the momentum": lambda p: type("Own", (torch.optim.SGD,), {})(p, lr=1.0, momentum=0.9, weight_decay=0.1),
    "sam": SAM,
    "no closure": Plain,
    "an odd wrapper": lambda p: Wrapper(torch.optim.SGD(p, lr=1.0)),
}


@pytest.mark.parametrize("base", TRUE_BASES)
def test_a_base_that_remembers_gradients_alone_is_taken_and_left_untouched(base, new_problem):
    problem = new_problem()
    made = TRUE_BASES[base](problem.params)
    before, random, groups = copies(problem.params), torch.get_rng_state(), repr(made.param_groups)
    mechanize(made)
    assert same(problem.params, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert repr(made.param_groups) == groups
    assert not made.state
    assert all(p.grad is None for p in problem.params)


def test_a_base_that_has_trained_already_is_taken(new_problem):
    """Its momenta are no copies of the weights."""
    problem = new_problem()
    base = SAM(problem.params, own_first=True)
    for _ in range(3):
        base.zero_grad()
        base.step(adding(problem, []))
    mechanize(base)


@pytest.mark.parametrize("foreach", [False, True])
def test_asgd_averages_the_weights_as_they_are_placed(foreach, problem):
    opt = mechanize(torch.optim.ASGD(problem.params, lr=1.0, t0=5.0, foreach=foreach), s_init=1e-3)
    average, weight = copies(problem.params), 1.0
    for t in range(1, 31):
        problem.backward(without=[3] if t % 4 == 0 else [])
        opt.step()
        with torch.no_grad():
            for i, (a, p) in enumerate(zip(average, problem.params, strict=True)):
                if i != 3:
                    a.lerp_(p, weight)
        weight = 1.0 / max(1.0, t - 5.0)
    assert weight == 1.0 / 25.0
    for a, p in zip(average[:3], problem.params[:3], strict=True):
        torch.testing.assert_close(opt.state[p]["ax"], a, rtol=1e-6, atol=1e-6)  # its weights are float32
