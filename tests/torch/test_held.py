"""What the user holds: S itself, a cap on it, or a part of the model by lr = 0."""

import io

import pytest
import torch

from mechanicd.client import InvalidArgument, connect
from mechanicd.torch import mechanize
from mechanicd.v1 import run_service_pb2


def steps(problem, opt, count):
    for _ in range(count):
        problem.backward()
        opt.step()


def copies(params):
    return [p.detach().clone() for p in params]


def test_a_frozen_s_stays_while_the_training_goes_on(problem, server, project):
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0), run="r", target=server.target, project=project, s_init=1e-4)
    steps(problem, opt, 10)
    S, x = opt.scale, copies(problem.params)
    opt.frozen = True
    steps(problem, opt, 5)
    assert opt.scale == S
    assert any(not torch.equal(p, q) for p, q in zip(problem.params, x, strict=True))
    opt.frozen = False
    steps(problem, opt, 5)
    assert opt.scale != S
    opt.close()
    with connect(server.target) as client:
        request = run_service_pb2.QuerySeriesRequest(name=f"projects/{project}/runs/r", first_step=1)
        records = client.call("QuerySeries", request).records
    assert [record.outcome for record in records] == [1] * 10 + [3] * 5 + [1] * 5, "held steps are shown as held"


def test_a_checkpoint_knows_that_s_was_frozen(new_problem):
    problem, again = new_problem(), new_problem()
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0), s_init=1e-4)
    steps(problem, opt, 10)
    opt.frozen = True
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    resumed = mechanize(torch.optim.SGD(again.params, lr=1.0), s_init=1e-4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    S = opt.scale
    steps(again, resumed, 3)
    assert resumed.frozen
    assert resumed.scale == S


@pytest.mark.parametrize("layout", ["delta", "delta+ref", "ref"])
def test_no_parameter_is_placed_with_more_than_the_cap(layout, new_problem):
    problem, other = new_problem(), new_problem()
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0), s_init=1e-4, max_scale=0.02, delta_layout=layout)
    free = mechanize(torch.optim.SGD(other.params, lr=1.0), s_init=1e-4)
    steps(problem, opt, 60)
    steps(other, free, 60)
    assert free.scale > 0.02
    assert opt.scale == 0.02
    x = copies(problem.params)
    opt.max_scale = 0.0  # and the way back is exact, whatever the cap was
    steps(problem, opt, 1)
    assert opt.scale == 0.0
    for p, start in zip(problem.params, problem.start, strict=True):
        torch.testing.assert_close(p.detach(), start, rtol=0, atol=1e-12)
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(problem.params, x, strict=True))


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0.0)], ids=["int", "float", "tensor"])
@pytest.mark.parametrize("layout", ["delta", "delta+ref", "ref"])
def test_lr_0_moves_nothing_and_what_stood_still_catches_up(layout, zero, problem):
    groups = [{"params": problem.params[:2]}, {"params": problem.params[2:]}]
    opt = mechanize(torch.optim.SGD(groups, lr=1.0, momentum=0.9), s_init=1e-4, delta_layout=layout)
    steps(problem, opt, 10)
    x, S = copies(problem.params[:2]), opt.scale
    opt.param_groups[0]["lr"] = zero
    steps(problem, opt, 5)
    assert opt.scale != S, "the others go on"
    assert all(torch.equal(p, q) for p, q in zip(problem.params[:2], x, strict=True))
    opt.param_groups[0]["lr"] = 1e-30  # moves by S alone now
    steps(problem, opt, 1)
    for p, q, start in zip(problem.params[:2], x, problem.start[:2], strict=True):
        torch.testing.assert_close(p.detach() - start, (q - start) * (opt.scale / S), rtol=1e-6, atol=1e-12)


def test_a_run_begins_with_the_first_step_that_moves_something(problem, server, project, history):
    opt = mechanize(torch.optim.SGD(problem.params, lr=0.0), run="r", target=server.target, project=project)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)
    opt.param_groups[0]["lr"] = 0.0  # a warm-up from 0
    x = copies(problem.params)
    steps(problem, opt, 2)
    assert all(torch.equal(p, q) for p, q in zip(problem.params, x, strict=True))
    assert opt.flush() == 0
    opt.param_groups[0]["lr"] = 1.0
    steps(problem, opt, 3)
    opt.close()
    assert [record.step for record in history(server.target, "r", project)] == [1, 2, 3]
    assert scheduler.last_epoch == 0


def test_the_effective_lr_is_s_times_lr_of_each_group(new_problem):
    for kind in ("all", "param_group", "tensor"):
        problem = new_problem()
        groups = [{"params": problem.params[:1], "lr": 1.0}, {"params": problem.params[1:], "lr": 0.5}]
        opt = mechanize(torch.optim.SGD(groups, lr=1.0), s_init=1e-4, scale_groups=kind)
        steps(problem, opt, 10)
        S = opt.scales
        if kind == "all":
            assert opt.effective_lr() == [S[0], 0.5 * S[0]]
            assert opt.effective_lrs() == [(S[0],), (0.5 * S[0],)]
        elif kind == "param_group":
            assert opt.effective_lr() == [S[0], 0.5 * S[1]]
            assert opt.effective_lrs() == [(S[0],), (0.5 * S[1],)]
        else:
            assert opt.effective_lrs() == [(S[0],), tuple(0.5 * s for s in S[1:])]
            with pytest.raises(InvalidArgument, match="effective_lrs") as caught:
                opt.effective_lr()
            assert caught.value.reason == "SEVERAL_SCALES"


def test_scale_is_one_float_and_scales_is_always_a_tuple(new_problem):
    problem = new_problem()
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0), s_init=1e-4)
    steps(problem, opt, 10)
    assert opt.scales == (opt.scale,)
    assert type(opt.scale) is float
    several = mechanize(torch.optim.SGD(new_problem().params, lr=1.0), scale_groups="tensor")
    assert several.scales == (0.0,) * 4
    with pytest.raises(InvalidArgument, match=r"4 scale groups.*opt\.scales") as caught:
        several.scale  # noqa: B018
    assert caught.value.reason == "SEVERAL_SCALES"
