"""What BASE may be: right, or refused by name in `mechanize`, with nothing done yet."""

import io
import itertools
import warnings

import pytest
import torch
from torch import Tensor

from mechanicd.client import InvalidArgument, ResumeError, Session
from mechanicd.torch import mechanize


def copies(params):
    return [p.detach().clone() for p in params]


def same(params, others):
    return all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.fixture
def sent(monkeypatch):
    """The reductions of every step, as the session gets them."""
    seen = []
    begin = Session.begin
    monkeypatch.setattr(Session, "begin", lambda self, r, **kw: seen.append(list(r)) or begin(self, r, **kw))
    return seen


# ---- BASEs that ascend


class OwnAscent(torch.optim.Optimizer):
    """It says that it ascends as an attribute, as the package pytorch_optimizer does."""

    def __init__(self, params, maximize):
        super().__init__(params, {"lr": 1.0})
        self.maximize = maximize

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for p in itertools.chain(*(group["params"] for group in self.param_groups)):
            if p.grad is not None:
                p.add_(p.grad, alpha=1.0 if self.maximize else -1.0)
        return loss


ASCENDING = {
    "sgd": lambda p, up: torch.optim.SGD(p, lr=1.0, momentum=0.9, maximize=up),
    "adamw": lambda p, up: torch.optim.AdamW(p, lr=1.0, maximize=up),
    "adam-fused": lambda p, up: torch.optim.Adam(p, lr=1.0, fused=True, maximize=up),
    "rmsprop": lambda p, up: torch.optim.RMSprop(p, lr=1.0, maximize=up, foreach=True),
    "an attribute": OwnAscent,
}


@pytest.mark.parametrize("closures", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("base", ASCENDING)
def test_maximizing_a_reward_is_minimizing_its_loss(base, closures, new_problem):
    """The same bits: every gradient changes its sign, and nothing else."""
    problem, twin = new_problem(), new_problem()
    up = mechanize(ASCENDING[base](problem.params, True), s_init=1e-6)
    down = mechanize(ASCENDING[base](twin.params, False), s_init=1e-6)

    def closure(of, opt, sign):
        def evaluate():
            opt.zero_grad()
            loss = of.loss(of.params)
            (sign * loss).backward()
            return loss.detach()

        return evaluate

    for _ in range(60):
        for evaluate, opt in ((closure(problem, up, -1.0), up), (closure(twin, down, 1.0), down)):
            if closures:
                opt.step(evaluate)
            else:
                evaluate()
                opt.step()
        assert same(problem.params, twin.params)
    assert up.scale == down.scale > 1e-4


@pytest.mark.parametrize("layout", ["delta", "delta+ref"])
@pytest.mark.parametrize("kind", ["all", "param_group", "tensor"])
def test_one_scale_group_may_ascend_and_descend(kind, layout, new_problem):
    """A game: the second param group maximizes what the first one minimizes."""
    problem, twin = new_problem(), new_problem()

    def groups(params, up):
        return [{"params": params[:2]}, {"params": params[2:], "maximize": up}]

    settings = {"s_init": 1e-6, "scale_groups": kind, "delta_layout": layout}
    mixed = mechanize(torch.optim.AdamW(groups(problem.params, True), lr=1.0), **settings)
    plain = mechanize(torch.optim.AdamW(groups(twin.params, False), lr=1.0), **settings)
    for _ in range(40):
        problem.backward()
        twin.backward()
        for p in problem.params[2:]:
            p.grad.neg_()
        mixed.step()
        plain.step()
    assert mixed.scales == pytest.approx(plain.scales, rel=1e-12)
    assert min(mixed.scales) > 1e-5
    for p, q in zip(problem.params, twin.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_group_may_turn_round(problem, sent):
    """What counts is what BASE does in this step."""
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0), s_init=1e-3)
    for up in (False, False, True):
        problem.backward()
        opt.param_groups[0]["maximize"] = up
        opt.step()
    (_,), (before,), (after,) = sent
    problem.backward()
    opt.param_groups[0]["maximize"] = False
    opt.step()
    assert before.delta_dot_g < 0 < after.delta_dot_g
    assert after.g_norm_sq > 0


# ---- closures: BASEs that look elsewhere first


class SAM(torch.optim.Optimizer):
    """Its step begins with the gradients that are there, moves x, and calls the closure for a second one."""

    def __init__(self, params, lr=1.0, through_data=False, own_first=False):
        super().__init__(params, {"lr": lr})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr)
        self.through_data, self.own_first = through_data, own_first

    def first_step(self):
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = sum(float(p.grad.pow(2).sum()) for p in params) ** 0.5 + 1e-12
        for p in params:
            self.state[p]["before"] = p.detach().clone()
            (p.data if self.through_data else p).add_(p.grad, alpha=0.05 / norm)

    def second_step(self):
        for p, entry in self.state.items():
            if "before" in entry:
                p.copy_(entry["before"])
        self.inner.step()

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure() if self.own_first else None
        self.first_step()
        self.zero_grad()
        with torch.enable_grad():
            second = closure()
        self.second_step()
        return second if loss is None else loss


def adding(problem, calls):
    """A closure that does not zero the gradients, as SAM's own examples have it."""

    def closure():
        loss = problem.loss(problem.params)
        loss.backward()
        calls.append(loss.item())
        return loss

    return closure


@pytest.mark.parametrize("through_data", [False, True], ids=["in place", "through .data"])
@pytest.mark.parametrize("own_first", [False, True], ids=["gradients at entry", "evaluates first"])
def test_sam_trains_with_as_many_evaluations_as_alone(own_first, through_data, new_problem, sent):
    start, ends, counts = new_problem().backward(), [], []
    for mechanized in (False, True):
        problem, calls = new_problem(), []
        base = SAM(problem.params, 1.0 if mechanized else 0.1, through_data, own_first)
        opt = mechanize(base, s_init=1e-4) if mechanized else base
        closure = adding(problem, calls)
        for _ in range(200):
            opt.zero_grad()
            if not own_first:
                closure()
            expected = [p.grad.clone() for p in problem.params] if not own_first else None
            opt.step(closure)
            if mechanized and expected is not None:
                (found,) = sent[-1]
                assert found.g_norm_sq == pytest.approx(sum(float(g.pow(2).sum()) for g in expected), rel=1e-10)
        ends.append(problem.loss(problem.params).item())
        counts.append(len(calls))
    assert counts[0] == counts[1]
    assert start - ends[1] > 0.7 * (start - ends[0]) > 0.0
    assert opt.scale > 1e-2


def test_a_step_of_sam_is_s_times_its_own(new_problem):
    """S and Δ follow Algorithm 1 with SAM's u: x moves as the update of SAM alone, times S."""
    problem, alone = new_problem(), new_problem()
    opt, base = mechanize(SAM(problem.params), s_init=1e-3), SAM(alone.params)
    delta = [torch.zeros_like(p) for p in problem.params]
    for _ in range(10):
        with torch.no_grad():
            for p, q in zip(alone.params, problem.params, strict=True):
                p.copy_(q)
        before = copies(alone.params)
        for of, stepped in ((problem, opt), (alone, base)):
            stepped.zero_grad()
            of.loss(of.params).backward()
            stepped.step(adding(of, []))
        for D, p, x in zip(delta, alone.params, before, strict=True):
            D.add_(p.detach() - x)
        for p, start, D in zip(problem.params, problem.start, delta, strict=True):
            torch.testing.assert_close(p.detach(), start + opt.scale * D, rtol=1e-9, atol=1e-12)


class Noisy(torch.optim.SGD):
    """Moves x before any gradient is there, and steps from where it was."""

    def step(self, closure):
        params = self.param_groups[0]["params"]
        before = copies(params)
        with torch.no_grad():
            for p in params:
                p.add_(0.1)
        loss = closure()
        with torch.no_grad():
            for p, x in zip(params, before, strict=True):
                p.copy_(x)
        super().step()
        return loss


def test_without_gradients_at_entry_the_one_at_x_t_is_evaluated(new_problem, sent):
    problem, twin = new_problem(), new_problem()
    opt = mechanize(Noisy(problem.params, lr=1.0), s_init=1e-3)
    seen = []

    def closure():
        seen.append(copies(problem.params))
        opt.zero_grad()
        loss = problem.loss(problem.params)
        loss.backward()
        return loss

    for _ in range(5):
        opt.zero_grad()
        for p, q in zip(twin.params, problem.params, strict=True):
            p.data.copy_(q.data)
        twin.backward()
        opt.step(closure)
        (found,) = sent[-1]
        assert found.g_norm_sq == pytest.approx(sum(float(p.grad.pow(2).sum()) for p in twin.params), rel=1e-10)
        assert same(seen[-2], twin.params)
        assert not same(seen[-1], twin.params)  # BASE's own evaluation is where BASE wanted it


def test_a_base_that_never_calls_its_closure_uses_the_gradients_at_entry(new_problem):
    class Deaf(torch.optim.SGD):
        def step(self, closure=None):
            return super().step()

    problem, twin = new_problem(), new_problem()
    opt, plain = (mechanize(base, s_init=1e-3) for base in (Deaf(problem.params, lr=1.0), torch.optim.SGD(twin.params, lr=1.0)))
    for _ in range(10):
        problem.backward()
        twin.backward()
        opt.step(lambda: 1.0)
        plain.step()
    assert same(problem.params, twin.params)
    assert opt.scale == plain.scale


@pytest.mark.parametrize("own_first", [False, True], ids=["gradients at entry", "evaluates first"])
def test_a_gradient_that_is_not_finite_skips_the_step_of_sam_too(own_first, new_problem):
    problem, twin = new_problem(), new_problem()
    opt, plain = (mechanize(SAM(p.params, own_first=own_first), s_init=1e-3) for p in (problem, twin))

    def step(of, opt, bad=False):
        def closure():
            loss = of.loss(of.params)
            loss.backward()
            if bad:
                of.params[0].grad.fill_(float("nan"))
            return loss

        opt.zero_grad()
        if not own_first:
            closure()
        opt.step(closure)

    for t in range(30):
        if t in (0, 7):
            before = copies(problem.params)
            step(problem, opt, bad=True)
            assert same(problem.params, before)
        step(problem, opt)
        step(twin, plain)
        assert same(problem.params, twin.params)
    assert opt.scale == plain.scale > 1e-3
    assert (opt.last_step, plain.last_step) == (32, 30)


def test_a_closure_that_fails_elsewhere_leaves_x_and_the_training_goes_on(problem):
    opt = mechanize(SAM(problem.params), s_init=1e-3)
    for _ in range(5):
        opt.zero_grad()
        problem.backward()
        opt.step(adding(problem, []))

    def broken():
        raise RuntimeError("the second gradient")

    before, S = copies(problem.params), opt.last_step
    problem.backward()
    with pytest.raises(RuntimeError, match="second gradient"):
        opt.step(broken)
    assert same(problem.params, before)
    assert opt.last_step == S + 1  # it was begun
    problem.backward()
    opt.step(adding(problem, []))
    assert not same(problem.params, before)


@pytest.mark.parametrize("name", ["first_step", "second_step"])
def test_the_two_calls_of_sam_are_refused(name, problem):
    opt = mechanize(SAM(problem.params))
    problem.backward()
    before = copies(problem.params)
    with pytest.raises(InvalidArgument, match=r"opt\.step\(closure\)") as caught:
        getattr(opt, name)()
    assert caught.value.reason == "BASE_STEPS_ITSELF"
    assert same(problem.params, before)


# ---- checkpoints of another form


class Wrapper(torch.optim.Optimizer):
    """Keeps its state_dict in a form of its own."""

    def __init__(self, inner):
        self.inner, self.count = inner, 0
        super().__init__([p for group in inner.param_groups for p in group["params"]], inner.defaults)
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        self.count += 1
        if self.count % 3 == 0:
            for p in itertools.chain(*(group["params"] for group in self.param_groups)):
                p.grad.mul_(2.0)
        return self.inner.step(closure)

    def state_dict(self):
        return {"inner": self.inner.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups
        self.count = state_dict["count"]


class Named(torch.optim.SGD):
    """Keeps it by names, and has no param groups in it."""

    def state_dict(self):
        return {"state": {f"p{i}": dict(entry) for i, entry in enumerate(self.state.values())}}

    def load_state_dict(self, state_dict):
        for p, entry in zip(self.param_groups[0]["params"], state_dict["state"].values(), strict=False):
            self.state[p] = dict(entry)


OWN_FORMS = {
    "wrapper": lambda p: Wrapper(torch.optim.AdamW(p, lr=1.0)),
    "named": lambda p: Named(p, lr=1.0, momentum=0.9),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("layout", ["delta", "delta+ref", "ref"])
@pytest.mark.parametrize("form", OWN_FORMS)
def test_a_checkpoint_of_any_form_resumes_bit_for_bit(form, layout, dtype, new_problem):
    problem, again = new_problem(dtype), new_problem(dtype)
    opt, resumed = (mechanize(OWN_FORMS[form](p.params), s_init=1e-3, delta_layout=layout) for p in (problem, again))
    for _ in range(10):
        problem.backward()
        opt.step()
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    for p, q in zip(again.params, problem.params, strict=True):
        p.data.copy_(q.data)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.last_step == 10
    for _ in range(10):
        for of, one in ((problem, opt), (again, resumed)):
            of.backward()
            one.step()
    assert same(problem.params, again.params)
    assert opt.scale == resumed.scale > 1e-3


def test_what_a_base_of_another_form_saved_is_its_own_again(problem):
    opt = mechanize(Wrapper(torch.optim.AdamW(problem.params, lr=1.0)))
    problem.backward()
    opt.step()
    saved = opt.state_dict()
    assert set(saved) == {"inner", "count", "mechanic"}
    del saved["mechanic"]
    with pytest.raises(ResumeError, match="NOT_MECHANIZED"):
        mechanize(Wrapper(torch.optim.AdamW(problem.params, lr=1.0))).load_state_dict(saved)


# ---- refused


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


# ---- learning rates


@pytest.mark.parametrize("lr", [1, 1.0, torch.tensor(1.0), torch.tensor([1.0])], ids=["int", "float", "tensor", "one-element"])
def test_any_lr_is_the_same_lr(lr, new_problem):
    problem, twin = new_problem(), new_problem()
    base = torch.optim.AdamW(problem.params, lr=1.0)
    base.param_groups[0]["lr"] = lr
    opt, plain = mechanize(base, s_init=1e-3), mechanize(torch.optim.AdamW(twin.params, lr=1.0), s_init=1e-3)
    for _ in range(20):
        problem.backward()
        twin.backward()
        opt.step()
        plain.step()
    assert opt.scale == pytest.approx(plain.scale, rel=1e-6)
    assert opt.effective_lr() == pytest.approx(plain.effective_lr(), rel=1e-6)


def test_an_adafactor_that_chooses_its_own_lr_trains_and_is_logged(new_problem):
    transformers = pytest.importorskip("transformers.optimization")
    from mechanicd.integrations._scales import logged_values

    problem = new_problem(torch.float32)
    opt = mechanize(transformers.Adafactor(problem.params, lr=None, relative_step=True, warmup_init=True), s_init=1e-3)
    schedule = transformers.AdafactorSchedule(opt)  # it sets lr = 0 before the first step, and asks BASE afterwards
    first = problem.backward()
    for step in range(60):
        problem.backward()
        opt.step()
        schedule.step()
        assert opt.last_step == step + 1
    assert problem.loss(problem.params).item() < 0.7 * first
    assert all(isinstance(lr, Tensor | float) for lr in schedule.get_last_lr())
    assert opt.effective_lr() == [pytest.approx(opt.scale * float(opt.param_groups[0]["lr"]))]
    opt.param_groups[0]["lr"] = None
    assert opt.effective_lr() == [opt.scale]
    assert logged_values(opt)["mechanic/effective_lr"] == opt.scale
