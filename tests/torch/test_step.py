"""What one step does and leaves alone: closures, gradients that can't be, and errors from either side."""

import logging

import pytest
import torch

from mechanicd.client import InvalidArgument, LocalSession, ServerUnavailable, SessionClosed, SessionFenced, _run
from mechanicd.torch import mechanize


def copies(params):
    return [p.detach().clone() for p in params]


def same(params, saved):
    return all(torch.equal(p, x) for p, x in zip(params, saved, strict=True))


def deltas(opt):
    return {i: entry["mechanic_delta"].clone() for i, entry in opt.state_dict()["state"].items()}


def warm(problem, opt, steps=30):
    for _ in range(steps):
        problem.backward()
        opt.step()


class Breaking(LocalSession):
    """A session whose finish() fails at the steps it is told."""

    fail_at = frozenset()

    def _receive(self, following, wait):
        if following.step in self.fail_at:
            raise SessionFenced("SESSION_FENCED", "a newer process holds the run")
        return super()._receive(following, wait)


# ---- closures


def test_a_closure_is_evaluated_once_and_its_loss_returned(new_problem):
    problem, twin = new_problem(), new_problem()
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))
    plain = mechanize(torch.optim.SGD(twin.params, lr=1.0))
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = problem.loss(problem.params)
        loss.backward()
        calls.append(loss)
        return loss

    for t in range(30):
        with torch.no_grad():
            returned = opt.step(closure)
        assert len(calls) == t + 1
        assert returned is calls[-1]
        twin.backward()
        assert plain.step() is None
        assert same(problem.params, twin.params)
    assert opt.scale == plain.scale > 0


class Extragradient(torch.optim.SGD):
    """Evaluates at x_t, at the end of a step from there, and at the end of a second one; moves every parameter."""

    def step(self, closure):
        params = [p for group in self.param_groups for p in group["params"]]
        x = copies(params)
        loss = closure()
        for _ in range(2):
            super().step()
            closure()
        with torch.no_grad():
            for p, start in zip(params, x, strict=True):
                p.copy_(start - (p.grad if p.grad is not None else 0.5))
        return loss


def test_a_base_evaluates_its_closure_as_often_as_it_likes(problem):
    opt = mechanize(Extragradient(problem.params, lr=0.1), s_init=1e-6)
    calls = []

    def closure():
        opt.zero_grad()
        loss = problem.loss(problem.params)
        loss.backward()
        calls.append(loss.item())
        return loss

    for step in range(100):
        assert opt.step(closure).item() == calls[3 * step]
    assert len(calls) == 300
    assert calls[-1] < 0.7 * calls[0]
    assert opt.scale > 1e-4


def test_a_parameter_without_a_gradient_stays_put_even_if_base_moves_it(problem):
    opt = mechanize(Extragradient(problem.params, lr=0.1), s_init=1e-3)
    without = []

    def closure():
        problem.backward(without)
        return problem.loss(problem.params)

    for _ in range(20):
        opt.step(closure)
    without.append(0)
    before = copies(problem.params)
    opt.step(closure)
    assert torch.equal(problem.params[0], before[0])
    assert not torch.equal(problem.params[1], before[1])


# ---- gradients


def test_a_nan_gradient_skips_the_step_whole_and_training_goes_on(new_problem, caplog):
    problem, twin = new_problem(), new_problem()
    opt, plain = (mechanize(torch.optim.AdamW(p.params, lr=1.0), run="r") for p in (problem, twin))
    warm(problem, opt)
    warm(twin, plain)
    for streak in (3, 2):
        caplog.clear()
        for _ in range(streak):
            before, delta, S = copies(problem.params), deltas(opt), opt.scale
            problem.backward()
            problem.params[1].grad[3] = float("nan")
            with caplog.at_level(logging.WARNING, "mechanicd.torch"):
                opt.step()
            assert same(problem.params, before)
            assert same(delta.values(), deltas(opt).values())
            assert opt.scale == S
        (said,) = (record for record in caplog.records if "NON_FINITE_REDUCTIONS" in record.getMessage())
        assert said.levelno == logging.WARNING, "once for steps in a row"
        warm(problem, opt, 10)
        warm(twin, plain, 10)
        assert same(problem.params, twin.params)  # BASE, Δ and the tuner were as if nothing had been
    assert opt.scale == plain.scale
    assert "step=55" in repr(opt)  # but each skipped step counts
    assert "step=50" in repr(plain)


def test_an_infinite_gradient_with_a_closure_returns_the_loss(problem):
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))

    def closure():
        problem.backward()
        problem.params[0].grad.fill_(float("inf"))
        return 7.5

    before = copies(problem.params)
    assert opt.step(closure) == 7.5
    assert same(problem.params, before)


def test_a_step_without_any_gradient_counts_and_changes_nothing(problem):
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0, momentum=0.9))
    warm(problem, opt)
    before, delta, S = copies(problem.params), deltas(opt), opt.scale
    opt.zero_grad()
    opt.step()
    assert same(problem.params, before)
    assert same(delta.values(), deltas(opt).values())
    assert opt.scale == S
    assert "step=31" in repr(opt)


def test_sparse_gradients_are_refused_before_anything_changes():
    table = torch.nn.Embedding(10, 3, sparse=True)
    dense = torch.nn.Parameter(torch.ones(2))
    opt = mechanize(torch.optim.SGD([dense, table.weight], lr=1.0))
    (table(torch.tensor([1, 2])).sum() + dense.sum()).backward()
    before = copies([dense, table.weight])
    with pytest.raises(InvalidArgument, match="sparse=False") as caught:
        opt.step()
    assert caught.value.reason == "SPARSE_GRADIENT"
    assert same([dense, table.weight], before)
    assert "step=0" in repr(opt)


def test_complex_parameters_are_refused():
    real, complex_ = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(InvalidArgument, match="view_as_real") as caught:
        mechanize(torch.optim.SGD([real, complex_], lr=1.0))
    assert caught.value.reason == "COMPLEX_PARAMETER"
    opt = mechanize(torch.optim.SGD([real], lr=1.0))
    with pytest.raises(InvalidArgument, match="COMPLEX_PARAMETER"):
        opt.add_param_group({"params": [complex_]})
    assert len(opt.param_groups) == 1


# ---- errors


def test_a_finish_that_raises_leaves_x_and_delta_as_they_were(problem, monkeypatch):
    monkeypatch.setattr(_run, "LocalSession", Breaking)
    monkeypatch.setattr(Breaking, "fail_at", {31})
    opt = mechanize(torch.optim.AdamW(problem.params, lr=1.0))
    warm(problem, opt)
    before, delta, S = copies(problem.params), deltas(opt), opt.scale
    problem.backward()
    with pytest.raises(SessionFenced, match="newer process"):
        opt.step()
    assert same(problem.params, before)
    assert same(delta.values(), deltas(opt).values())
    assert opt.scale == S
    assert "step=30" in repr(opt)


def test_a_finish_that_raises_does_so_with_a_closure_too(problem, monkeypatch):
    monkeypatch.setattr(_run, "LocalSession", Breaking)
    monkeypatch.setattr(Breaking, "fail_at", {4})
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))
    warm(problem, opt, 3)
    before = copies(problem.params)
    with pytest.raises(SessionFenced):
        opt.step(lambda: problem.backward(without=[2]))
    assert same(problem.params, before)


@pytest.mark.parametrize("at_the_server_too", [False, True])
def test_a_base_that_raises_leaves_x_and_delta_and_training_can_go_on(at_the_server_too, problem, monkeypatch, caplog):
    monkeypatch.setattr(_run, "LocalSession", Breaking)
    monkeypatch.setattr(Breaking, "fail_at", {31} if at_the_server_too else frozenset())

    class Fails(torch.optim.SGD):
        fail = False

        def step(self, closure=None):
            super().step(closure)
            if self.fail:
                raise RuntimeError("out of memory")

    base = Fails(problem.params, lr=1.0)
    opt = mechanize(base)
    warm(problem, opt)
    before, delta = copies(problem.params), deltas(opt)
    base.fail = True
    problem.backward()
    with pytest.raises(RuntimeError, match="out of memory"):
        opt.step()
    assert same(problem.params, before)
    assert same(delta.values(), deltas(opt).values())
    assert ("SESSION_FENCED" in caplog.text) is at_the_server_too
    base.fail = False
    monkeypatch.setattr(Breaking, "fail_at", frozenset())
    warm(problem, opt, 5)
    assert not same(problem.params, before)


def test_an_open_that_fails_leaves_everything(problem, monkeypatch):
    def refuse(*_, **__):
        raise ServerUnavailable("SERVER_UNREACHABLE", "nobody is there")

    monkeypatch.setattr(_run, "open_run", refuse)
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0), run="r", target="nowhere:1")
    before = copies(problem.params)
    problem.backward()
    with pytest.raises(ServerUnavailable):
        opt.step()
    assert same(problem.params, before)


def test_no_step_follows_close(problem):
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0), run="r")
    warm(problem, opt, 3)
    opt.close()
    opt.close()
    before = copies(problem.params)
    with pytest.raises(SessionClosed, match="load a checkpoint"):
        opt.step()
    assert same(problem.params, before)
