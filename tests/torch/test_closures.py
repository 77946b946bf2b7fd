"""BASEs that call the closure when and where they like: SAM and its kind train, or their two calls are refused by name."""

import pytest
import torch

from mechanicd.client import InvalidArgument, Session
from mechanicd.torch import mechanize
from tests.torch.own_bases import SAM, adding, copies, same


@pytest.fixture
def sent(monkeypatch):
    """The reductions of every step, as the session gets them."""
    seen = []
    begin = Session.begin
    monkeypatch.setattr(Session, "begin", lambda self, r, **kw: seen.append(list(r)) or begin(self, r, **kw))
    return seen


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
