"""A CUDA device that takes steps before the host has their sums: the same bits as one that waits. Needs a CUDA device."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mechanicd.client import SessionFenced, StepConflict
from mechanicd.torch import _async_device, mechanize
from mechanicd.tuner import Reductions, Tuner, TunerConfig, TunerState

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("convention", _async_device.CONVENTIONS)
@pytest.mark.parametrize("groups", [1, 5, 70])
def test_every_bit_of_the_devices_tuner_is_the_hosts(convention, groups):
    from mechanicd.torch._triton_tuner import DeviceTuner

    config = TunerConfig(convention=convention, scale_groups=tuple(map(str, range(groups))), s_decay=0.1)
    tuner, make = Tuner(config), np.random.default_rng(groups)
    state = TunerState.initial(config)
    device = torch.device("cuda")
    there = DeviceTuner(device, config, 1e-3)
    there.load(state)
    for step in range(300):
        size = 10.0 ** make.uniform(-(1 + step), 1 + step, (groups, 4)) if step < 150 else 1.0
        sums = np.clip(make.standard_normal((groups, 4)) * size, -1e300, 1e300)
        sums[:, 2:] = np.abs(sums[:, 2:])
        if step % 50 == 49:
            sums[-1, step % 4] = [np.nan, np.inf][step % 2]
        flag = torch.tensor(float(not np.isfinite(sums).all()), device="cuda")
        there.advance(torch.from_numpy(sums).cuda(), flag)
        before = [min(S, 1e-3) for S in state.scale]
        state = tuner.update(state, [Reductions(*row) for row in sums.tolist()])
        rows = torch.tensor([list(row[:4]) for row in state.rows], dtype=torch.float64).permute(1, 2, 0).contiguous()
        assert there._state.cpu().numpy().tobytes() == rows.numpy().tobytes(), f"step {step}"
        assert there.report[:, 4].tolist() == list(state.scale)
        placed = torch.tensor([before, [min(S, 1e-3) for S in state.scale]], dtype=torch.float64).float()
        assert torch.equal(there.scales.cpu(), placed)


def train(ahead, dtype=torch.float32, scale_groups="all", steps=60, max_scale=None, **where):
    """A training with everything that ends a stretch of async steps; returns parameters, S on the way, and the optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 10)).to("cuda", dtype)
    first, last = model[0], model[2]
    groups = [{"params": first.parameters()}, {"params": last.parameters(), "lr": 0.5}]
    base = torch.optim.AdamW(groups, lr=1.0, fused=True)
    opt = mechanize(base, scale_groups=scale_groups, s_init=1e-4, max_scale=max_scale, ahead=ahead, **where)
    x = torch.randn(512, 64, device="cuda", dtype=dtype)
    y = torch.randint(0, 10, (512,), device="cuda")
    seen, stretches = [], 0
    for step in range(steps):
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x).float(), y).backward()
        if step in (12, 13):
            first.weight.grad[3, 3] = float("nan")
        if step in (20, 21):
            last.bias.grad = None
        opt.frozen = step in (30, 31)
        base.param_groups[1]["lr"] = 0.0 if step in (40, 41) else 0.5
        if step == 50:
            opt.max_scale = 2e-4
        opt.step()
        stretches += opt._stepper.async_device is not None
        if step % 9 == 0:
            seen.append(opt.scales)
    seen.append(opt.scales)
    assert (stretches > 30) == ahead
    return [p.detach().clone() for p in model.parameters()], seen, opt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale_groups", ["all", "param_group", "tensor"])
@pytest.mark.parametrize("max_scale", [None, 5e-4])
def test_async_steps_change_no_bit(dtype, scale_groups, max_scale):
    params, seen, opt = train(True, dtype, scale_groups, max_scale=max_scale)
    others, expected, other = train(False, dtype, scale_groups, max_scale=max_scale)
    assert seen == expected
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    for D, E in zip(opt._stepper.memory.delta.values(), other._stepper.memory.delta.values(), strict=True):
        assert torch.equal(D, E)
    assert list(opt._stepper.memory.placed.values()) == list(other._stepper.memory.placed.values())
    assert opt.last_step == other.last_step == 60


def test_the_server_has_every_step_and_a_checkpoint_resumes(server, project, history):
    _, seen, opt = train(True, run="r", target=server.target, project=project)
    _, expected, _ = train(False)
    assert seen == expected
    assert opt.flush() == 60
    assert opt.state_dict()["param_groups"]
    opt.close()
    assert [record.step for record in history(server.target, "r", project)] == list(range(1, 61))


def test_a_program_that_ends_without_close_leaves_no_step_behind(server, project, history, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\nfrom mechanicd.torch import mechanize\n"
        "p = torch.nn.Parameter(torch.randn(5000, device='cuda'))\n"
        f"opt = mechanize(torch.optim.AdamW([p], lr=1.0, fused=True), 'r', {server.target!r}, project={project!r})\n"
        "for _ in range(40):\n    p.grad = torch.sin(p.detach())\n    opt.step()\n"
    )
    subprocess.run([sys.executable, program], check=True, timeout=100)
    assert [record.step for record in history(server.target, "r", project)] == list(range(1, 41))


def test_a_base_that_fails_leaves_the_parameters_and_the_step_counts():
    p = torch.nn.Parameter(torch.randn(5000, device="cuda"))
    base = torch.optim.AdamW([p], lr=1.0, fused=True)
    opt = mechanize(base, s_init=1e-4)
    for _ in range(5):
        p.grad = torch.sin(p.detach())
        opt.step()
    before, right = p.detach().clone(), base.step

    def wrong(*_):
        right()
        raise ZeroDivisionError

    base.step = wrong
    with pytest.raises(ZeroDivisionError):
        opt.step()
    assert torch.equal(p.detach(), before)
    assert opt.last_step == 6
    base.step = right
    opt.step()
    assert opt.last_step == 7
    assert torch.isfinite(p).all()


def test_a_device_that_computes_other_bits_raises_scale_mismatch(monkeypatch):
    from mechanicd.torch._triton_tuner import DeviceTuner

    p = torch.nn.Parameter(torch.randn(5000, device="cuda"))
    opt = mechanize(torch.optim.AdamW([p], lr=1.0, fused=True), s_init=1e-4)
    right = DeviceTuner.load

    def load(self, state):
        right(self, state)
        self._constants[10] = torch.nextafter(self._constants[10], torch.zeros_like(self._constants[10]))

    monkeypatch.setattr(DeviceTuner, "load", load)

    def go_on():
        for _ in range(20):
            p.grad = torch.sin(p.detach())
            opt.step()

    with pytest.raises(StepConflict) as caught:
        go_on()
    assert caught.value.reason == "SCALE_MISMATCH"


def test_the_older_of_two_trainers_is_fenced_some_steps_later(server, project):
    def trainer():
        p = torch.nn.Parameter(torch.randn(5000, device="cuda"))
        opt = mechanize(torch.optim.AdamW([p], lr=1.0, fused=True), "r", server.target, project=project)
        return p, opt

    def steps(p, opt, count):
        for _ in range(count):
            p.grad = torch.sin(p.detach())
            opt.step()

    older, newer = trainer(), trainer()
    steps(*older, 10)
    steps(*newer, 3)
    with pytest.raises(SessionFenced):
        steps(*older, 200)
    newer[1].close()
