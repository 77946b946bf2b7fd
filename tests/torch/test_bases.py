"""What BASE may be: right, or refused by name in `mechanize`, with nothing done yet."""

import io
import itertools

import pytest
import torch
from torch import Tensor

from mechanicd.client import ResumeError, Session
from mechanicd.torch import mechanize
from tests.torch.own_bases import Wrapper, same


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


# ---- checkpoints of another form


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
