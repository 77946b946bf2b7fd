"""BASE's own face: what a trainer asks of an optimizer is answered by BASE, and nothing steps BASE behind S's back."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mechanicd.client import InvalidArgument
from mechanicd.torch import Mechanized, mechanize


class Rich(torch.optim.SGD):
    """A BASE with attributes, methods and arguments of its own."""

    is_second_order = True

    def __init__(self, params, lr=1.0):
        super().__init__(params, lr)
        self.radius, self.mode, self.seen = 0.05, "train", []
        self.inner = torch.optim.SGD(self.param_groups, lr=lr)
        self.update_period = 10

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"

    def _get_lr(self, group, state):
        return group["lr"] * self.radius

    def zero_grad(self):
        self.seen.append("zero_grad")
        super().zero_grad()

    def step(self, closure=None, hessian=None, *, logits=None):
        self.seen.append((hessian, logits, self.radius))
        return super().step(closure)

    def step_embedding(self, p):
        p.data.zero_()

    def fused_step(self):
        super().step()

    def get_step(self):
        return len(self.seen)


def test_attributes_and_methods_are_bases(problem):
    opt = mechanize(Rich(problem.params))
    assert opt.is_second_order
    assert hasattr(opt, "is_second_order")
    assert opt._get_lr({"lr": 2.0}, None) == 0.1
    opt.eval()
    assert opt.base.mode == opt.mode == "eval"
    opt.train()
    assert opt.mode == "train"
    opt.zero_grad()
    assert opt.seen == ["zero_grad"]


def test_what_neither_has_is_missing(problem):
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))
    assert not hasattr(opt, "train")
    assert not hasattr(opt, "is_second_order")
    with pytest.raises(AttributeError, match="rho"):
        _ = opt.rho


def test_an_attribute_that_is_set_is_set_where_base_reads_it(problem):
    opt = mechanize(Rich(problem.params))
    opt.radius = 0.5
    opt.mine = 1  # nobody's: it stays here
    opt.max_scale = 0.1
    problem.backward()
    opt.step()
    assert opt.base.seen[-1] == (None, None, 0.5)
    assert not hasattr(opt.base, "mine")
    assert not hasattr(opt.base, "max_scale")


def test_further_arguments_of_step_reach_base(problem):
    opt = mechanize(Rich(problem.params), s_init=1e-3)
    for _ in range(5):
        problem.backward()
        opt.step(None, "H", logits="L")
        assert opt.base.seen[-1][:2] == ("H", "L")
        problem.backward()
        opt.step(hessian="K")
        assert opt.base.seen[-1][:2] == ("K", None)

        def closure():
            problem.backward()
            return problem.loss(problem.params)

        assert opt.step(closure, hessian="C") is not None
        assert opt.base.seen[-1][:2] == ("C", None)
    assert opt.last_step == 15
    assert opt.scale > 1e-3


@pytest.mark.parametrize("name", ["step_embedding", "fused_step"])
def test_nothing_steps_base_without_s(name, problem):
    opt = mechanize(Rich(problem.params))
    before = [p.detach().clone() for p in problem.params]
    with pytest.raises(InvalidArgument, match=f"Rich.{name}") as caught:
        getattr(opt, name)(problem.params[0])
    assert caught.value.reason == "BASE_STEPS_ITSELF"
    assert all(torch.equal(p, x) for p, x in zip(problem.params, before, strict=True))
    assert not hasattr(opt, "inner")  # who unwraps optimizers until there is none inside finds this one
    assert opt.base.inner is not None
    assert opt.update_period == 10
    assert opt.get_step() == 0


def test_a_copy_has_a_base_of_its_own(problem):
    base = torch.optim.Adam(problem.params, lr=1.0)
    opt = mechanize(base)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other.base is not base
        assert other.param_groups[0]["lr"] == 1.0
        assert not hasattr(other, "rho")


def test_grad_scaler_unscales_for_a_base_that_could_do_it_itself(new_problem):
    """A fused Adam says so; S needs the gradients unscaled."""
    problem, twin = new_problem(torch.float32), new_problem(torch.float32)
    opt, plain = (mechanize(torch.optim.Adam(p.params, lr=1.0, fused=True), s_init=1e-3) for p in (problem, twin))
    assert opt.base._step_supports_amp_scaling
    assert not opt._step_supports_amp_scaling
    assert "grad_scaler" not in inspect.signature(opt.step).parameters
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(10):
        opt.zero_grad()
        scaler.scale(problem.loss(problem.params)).backward()
        scaler.step(opt)
        scaler.update()
        twin.backward()
        plain.step()
    assert opt.scale == pytest.approx(plain.scale, rel=1e-4)


# ---- hooks


@pytest.fixture
def everywhere():
    """Hooks for the steps of all optimizers, gone after the test."""
    handles = []

    def register(before, after):
        handles.append(register_optimizer_step_pre_hook(before))
        handles.append(register_optimizer_step_post_hook(after))

    yield register
    for handle in handles:
        handle.remove()


BASES = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0),
    "with an optimizer inside": Rich,
}


@pytest.mark.parametrize("closures", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("base", BASES)
def test_a_hook_for_every_optimizer_is_called_once_a_step_with_the_weights_as_they_will_be(base, closures, problem, everywhere):
    seen = []
    made = BASES[base](problem.params)

    def weights():
        return [p.detach().clone() for p in problem.params]

    everywhere(
        lambda o, args, kwargs: seen.append(("before", type(o), weights())),
        lambda o, args, kwargs: seen.append(("after", type(o), weights())),
    )
    opt = mechanize(made, s_init=1e-3)
    assert seen == []

    def closure():
        problem.backward()
        return problem.loss(problem.params)

    for _ in range(3):
        seen.clear()
        before = weights()
        if closures:
            opt.step(closure)
        else:
            problem.backward()
            opt.step()
        assert [(when, kind) for when, kind, _ in seen] == [("before", Mechanized), ("after", Mechanized)]
        for found, expected in zip((seen[0][2], seen[1][2]), (before, weights()), strict=True):
            assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))


def test_other_optimizers_keep_their_hooks(problem, everywhere):
    seen = []
    everywhere(lambda o, args, kwargs: None, lambda o, args, kwargs: seen.append(type(o).__name__))
    opt, other = mechanize(torch.optim.SGD(problem.params[:2], lr=1.0)), torch.optim.SGD(problem.params[2:], lr=0.1)
    opt.base.register_step_post_hook(lambda o, args, kwargs: seen.append("base's own"))
    for _ in range(2):
        problem.backward()
        opt.step()
        other.step()
    assert seen == ["base's own", "Mechanized", "SGD"] * 2


def test_hooks_come_back_after_a_base_that_raises(problem, everywhere):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("broken")

    seen = []
    everywhere(lambda o, args, kwargs: None, lambda o, args, kwargs: seen.append(type(o).__name__))
    opt = mechanize(Broken(problem.params, lr=1.0))
    problem.backward()
    with pytest.raises(RuntimeError, match="broken"):
        opt.step()
    other = torch.optim.SGD(problem.params, lr=0.1)
    other.step()
    assert seen == ["SGD"]


@pytest.mark.parametrize("on", ["the mechanized optimizer", "BASE"])
@pytest.mark.parametrize("closures", [False, True], ids=["plain", "closure"])
def test_schedulers_count_the_steps(on, closures, problem):
    """torch warns of a scheduler that steps before its optimizer, and of a step that was replaced."""
    base = torch.optim.AdamW(problem.params, lr=1.0)
    early = lr_scheduler.StepLR(base, step_size=2, gamma=0.5) if on == "BASE" else None
    opt = mechanize(base)
    scheduler = early or lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            problem.backward()
            if closures:
                opt.step(lambda: problem.loss(problem.params))
            else:
                opt.step()
            scheduler.step()
    assert opt.param_groups[0]["lr"] == 0.25
