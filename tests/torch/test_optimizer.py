"""What mechanize returns is a torch optimizer like any other, and refuses what it can't do."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.optim import lr_scheduler

from mechanicd.client import InvalidArgument
from mechanicd.torch import Mechanized, mechanize

SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, step_size=7, gamma=0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=60),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=61, cycle_momentum=False),
    "warmup": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=20),
}


def test_it_is_an_optimizer_and_shares_what_base_owns(problem):
    base = torch.optim.AdamW(problem.params, lr=1.0)
    opt = mechanize(base, run="r")
    assert isinstance(opt, torch.optim.Optimizer)
    assert isinstance(opt, Mechanized)
    assert opt.base is base
    assert opt.param_groups is base.param_groups
    assert opt.defaults is base.defaults
    problem.backward()
    opt.step()
    assert opt.state is base.state
    assert set(opt.state[problem.params[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups is base.param_groups
    assert opt.state is base.state
    opt.zero_grad()
    assert all(p.grad is None for p in problem.params)
    assert repr(opt).startswith("Mechanized(run='r', step=1, scale=0.0, base=AdamW (")


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_scheduler_acts_on_bases_lr_and_on_the_updates(name, problem, oracle, gap):
    class Scheduled:
        lr = 1.0

        def update(self, i, x, g):
            return -self.lr * g

    plain = oracle(problem.params, Scheduled())
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))
    scheduler = SCHEDULERS[name](opt)
    rates = set()
    for _ in range(60):
        plain.base.lr = opt.base.param_groups[0]["lr"]
        assert scheduler.get_last_lr() == [plain.base.lr]
        rates.add(plain.base.lr)
        problem.backward()
        opt.step()
        plain.step([p.grad.numpy() for p in problem.params])
        scheduler.step()
        assert gap(problem.params, plain.x) <= 1e-12
    assert len(rates) > 5
    assert opt.scale == pytest.approx(plain.S, rel=1e-12)
    assert opt.scale > 1e-4


def test_onecycle_cycles_bases_momentum(problem):
    opt = mechanize(torch.optim.AdamW(problem.params, lr=1.0))
    scheduler = lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=10)
    seen = set()
    for _ in range(8):
        problem.backward()
        opt.step()
        scheduler.step()
        seen.add(opt.base.param_groups[0]["betas"][0])
    assert len(seen) > 4


def test_reduce_lr_on_plateau_acts_on_bases_lr(problem):
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))
    scheduler = lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0)
    for _ in range(3):
        problem.backward()
        opt.step()
        scheduler.step(1.0)
    assert opt.base.param_groups[0]["lr"] == 0.25


def test_a_schedulers_lr_survives_a_checkpoint(new_problem):
    problem, again = new_problem(), new_problem()
    opt, resumed = (mechanize(torch.optim.SGD(p.params, lr=1.0)) for p in (problem, again))
    scheduler, other = (lr_scheduler.StepLR(o, step_size=2, gamma=0.5) for o in (opt, resumed))
    for _ in range(4):
        problem.backward()
        opt.step()
        scheduler.step()
    resumed.load_state_dict(opt.state_dict())
    other.load_state_dict(scheduler.state_dict())
    again.backward()
    resumed.step()
    other.step()
    other.step()
    assert resumed.base.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("enabled", [False, True])
def test_grad_scaler_takes_it(enabled, new_problem):
    """Its factors are powers of two, so the scaled training equals the plain one; an overflow is its own to skip."""
    problem, twin = new_problem(torch.float32), new_problem(torch.float32)
    opt, plain = (mechanize(torch.optim.AdamW(p.params, lr=1.0, fused=True)) for p in (problem, twin))
    scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=1024.0)
    for t in range(40):
        opt.zero_grad()
        scaler.scale(problem.loss(problem.params)).backward()
        if enabled and t == 20:
            problem.params[0].grad.fill_(float("inf"))
        scaler.step(opt)
        scaler.update()
        if not (enabled and t == 20):
            twin.backward()
            plain.step()
    assert opt.scale == pytest.approx(plain.scale, rel=1e-4)
    assert opt.scale > 0
    assert f"step={39 if enabled else 40}" in repr(opt)  # GradScaler did not call the step that overflowed


def test_step_hooks_run_once_each(problem):
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))
    seen = []
    opt.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    opt.base.register_step_post_hook(lambda o, args, kwargs: seen.append("base"))
    opt.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    problem.backward()
    opt.step()
    assert seen == ["before", "base", "after"]


def test_the_lr_that_base_used_goes_with_the_reductions(problem, monkeypatch):
    from mechanicd.client import Session

    seen = []
    begin = Session.begin
    monkeypatch.setattr(Session, "begin", lambda self, r, **kw: seen.append(kw["base_lr"]) or begin(self, r, **kw))
    opt = mechanize(torch.optim.SGD([{"params": problem.params[:1], "lr": 0.25}, {"params": problem.params[1:]}], lr=1.0))
    problem.backward()
    opt.step()
    opt.param_groups[0]["lr"] = torch.tensor(0.5)
    opt.step()
    assert seen == [0.25, 0.5]
    assert all(type(lr) is float for lr in seen)


def test_scale_groups_are_named_in_the_config(problem):
    groups = [{"params": problem.params[:1]}, {"params": problem.params[1:]}]

    def named(kind):
        opt = mechanize(torch.optim.SGD(groups, lr=1.0), scale_groups=kind)
        return opt.state_dict()["param_groups"][0]["mechanic"]["config"]["scale_groups"], opt.scales

    assert named("all") == (["all"], (0.0,))
    assert named("param_group") == (["param_group/0", "param_group/1"], (0.0, 0.0))
    names, scales = named("tensor")
    assert names == ["param_group/0/tensor/0", "param_group/1/tensor/0", "param_group/1/tensor/1", "param_group/1/tensor/2"]
    assert scales == (0.0,) * 4


@pytest.mark.parametrize("kind", ["param_group", "tensor"])
def test_groups_added_before_the_first_step_have_an_s_of_their_own(kind, problem):
    """`test_changing_parameters` has those that are added later."""
    opt = mechanize(torch.optim.SGD(problem.params[:2], lr=1.0), scale_groups=kind)
    opt.add_param_group({"params": problem.params[2:3]})
    problem.backward()
    opt.step()
    assert len(opt.scales) == (2 if kind == "param_group" else 3)


def test_groups_added_to_base_itself_before_the_first_step_count(problem):
    opt = mechanize(torch.optim.SGD(problem.params[:2], lr=1.0), scale_groups="param_group")
    opt.base.add_param_group({"params": problem.params[2:]})
    problem.backward()
    opt.step()
    assert len(opt.scales) == 2


@pytest.mark.parametrize(
    ("settings", "reason", "says"),
    [
        ({"target": "t"}, "RUN_NAME_MISSING", "run="),
        ({"scale_groups": "layer"}, "INVALID_SETTING", "param_group"),
        ({"delta_layout": "nothing"}, "INVALID_SETTING", "delta"),
        ({"delta_layout": "refs"}, "INVALID_SETTING", "refs"),
        ({"max_scale": 0.0}, "INVALID_SETTING", "max_scale=0.0"),
        ({"on_outage": "panic"}, "INVALID_OUTAGE_POLICY", "local, hold, raise"),
        ({"betas": (1.5,)}, "INVALID_CONFIG", "betas"),
        ({"convention": "mine"}, "INVALID_CONFIG", "paper"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(settings, reason, says, problem):
    with pytest.raises(InvalidArgument, match=says) as caught:
        mechanize(torch.optim.SGD(problem.params, lr=1.0), **settings)
    assert caught.value.reason == reason
    assert isinstance(caught.value, ValueError)


def test_a_class_or_a_mechanized_optimizer_is_no_base(problem):
    with pytest.raises(InvalidArgument, match="BASE_NOT_AN_OPTIMIZER"):
        mechanize(torch.optim.SGD)
    with pytest.raises(InvalidArgument, match="already"):
        mechanize(mechanize(torch.optim.SGD(problem.params, lr=1.0)))


def test_without_torch_the_import_says_what_to_install():
    program = """
        import sys

        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name == "torch" or name.startswith("torch."):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, NoTorch())
        try:
            import mechanicd.torch
        except ImportError as error:
            print(error.reason, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("TORCH_MISSING ")
    assert "pip install 'mechanicd[torch]'" in done.stdout


def test_it_trains_a_classifier_of_handwritten_digits_without_a_learning_rate():
    """1,797 real scans; BASE's lr stays 1.0, S finds the scale."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0))
    loss_of = torch.nn.CrossEntropyLoss()
    seen = []
    for _ in range(10):
        for batch in torch.randperm(1500).split(100):
            opt.zero_grad()
            loss_of(model(images[batch]), labels[batch]).backward()
            opt.step()
        with torch.no_grad():
            seen.append(loss_of(model(images[:1500]), labels[:1500]).item())
    accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    assert 1e-4 < opt.scale < 1.0
    assert seen[-1] < 0.3 < 2.0 < seen[0]
    assert accuracy > 0.85
