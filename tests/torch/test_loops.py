"""Loops as people write them: each is right, or refused by name before anything is wrong."""

import copy
import io
import threading

import pytest
import torch
from torch.nn import Linear, Parameter

from mechanicd.client import InvalidArgument, ResumeError
from mechanicd.torch import mechanize


def problem(opt):
    params = [p for group in opt.param_groups for p in group["params"]]
    opt.zero_grad()
    sum((p - 1).pow(2).sum() * (i + 1) for i, p in enumerate(params)).backward()


def train(opt, steps=1):
    for _ in range(steps):
        problem(opt)
        opt.step()


def tensors(count=3):
    torch.manual_seed(0)
    return [Parameter(torch.randn(4, dtype=torch.float64)) for _ in range(count)]


def sgd(params, **settings):
    return mechanize(torch.optim.SGD(params, lr=1.0, momentum=0.9), s_init=1e-3, **settings)


def refused(reason, kind=InvalidArgument):
    return pytest.raises(kind, match=rf"\[{reason}\]$")


# ---- S belongs to a place


def test_param_groups_in_another_order_are_refused_and_nothing_changes():
    params = tensors()
    opt = sgd([{"params": [p]} for p in params], scale_groups="param_group")
    train(opt, 5)
    scales = opt.scales
    opt.param_groups.reverse()
    problem(opt)
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        with refused("SCALE_GROUP_MOVED"):
            opt.step()
    assert opt.scales == scales
    assert opt.last_step == 5
    assert all(map(torch.equal, params, before))
    opt.param_groups.reverse()
    opt.step()
    assert opt.last_step == 6


def test_tensors_in_another_order_are_refused():
    opt = sgd(tensors(), scale_groups="tensor")
    train(opt, 3)
    params = opt.param_groups[0]["params"]
    params.append(params.pop(0))
    problem(opt)
    with refused("SCALE_GROUP_MOVED"):
        opt.step()


def test_a_group_removed_and_another_appended_is_refused():
    """There are as many as before, but each S would be that of the next one."""
    opt = sgd([{"params": [p]} for p in tensors()], scale_groups="param_group")
    train(opt, 3)
    del opt.param_groups[0]
    opt.add_param_group({"params": tensors(1)})
    problem(opt)
    with refused("SCALE_GROUP_MOVED"):
        opt.step()


def test_a_tensor_put_in_front_is_refused():
    opt = sgd(tensors(), scale_groups="tensor")
    train(opt, 3)
    opt.param_groups[0]["params"].insert(0, *tensors(1))
    problem(opt)
    with refused("SCALE_GROUP_MOVED"):
        opt.step()


def test_a_parameter_may_move_to_another_group_and_be_replaced_in_its_place():
    a, b, c = tensors()
    opt = sgd([{"params": [a, b]}, {"params": [c]}], scale_groups="param_group")
    train(opt, 3)
    opt.param_groups[1]["params"].append(opt.param_groups[0]["params"].pop())
    train(opt, 3)
    opt.param_groups[0]["params"] = tensors(1)
    train(opt, 3)
    assert opt.last_step == 9


def test_with_one_s_any_order_goes():
    opt = sgd([{"params": [p]} for p in tensors()])
    train(opt, 3)
    opt.param_groups.reverse()
    train(opt, 3)
    assert opt.last_step == 6


# ---- shared memory


def halves():
    buffer = torch.randn(12)
    return [Parameter(buffer[:8]), Parameter(buffer[4:])]


def columns_and_all():
    buffer = torch.randn(6, 4)
    return [Parameter(buffer[:, 1]), Parameter(buffer[:, ::2]), Parameter(buffer[:, 1:3])]


def other_width():
    buffer = torch.randn(8)
    return [Parameter(buffer), Parameter(buffer[2:4].view(torch.float64))]


def expanded():
    return [Parameter(torch.zeros(1).expand(5))]


def windows():
    return [Parameter(torch.randn(9).unfold(0, 3, 1))]


@pytest.mark.parametrize("make", [halves, columns_and_all, other_width, expanded, windows])
def test_overlapping_parameters_are_refused(make):
    params = make()
    opt = mechanize(torch.optim.SGD(params, lr=1.0))
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones(p.shape, dtype=p.dtype)
    with refused("SHARED_STORAGE"):
        opt.step()
    assert all(map(torch.equal, params, before))


def test_a_parameter_that_is_named_twice_is_refused():
    p = Parameter(torch.randn(3))
    with pytest.warns(UserWarning, match="duplicate"):
        opt = mechanize(torch.optim.SGD([p, p], lr=1.0))
    p.grad = torch.ones(3)
    with refused("SHARED_STORAGE"):
        opt.step()


def test_parameters_that_come_to_share_memory_amid_a_run_are_refused():
    a, b = Linear(4, 4, bias=False), Linear(4, 4, bias=False)
    opt = sgd([a.weight, b.weight])
    train(opt, 3)
    b.weight.data = a.weight.data
    problem(opt)
    with refused("SHARED_STORAGE"):
        opt.step()
    b.weight.data = a.weight.data.clone()
    opt.step()
    assert opt.last_step == 4


@pytest.mark.parametrize("cut", ["slices", "columns"])
def test_separate_pieces_of_one_buffer_train_as_tensors_of_their_own(cut):
    torch.manual_seed(0)
    buffer = torch.randn(6, 8, dtype=torch.float64)
    pieces = [buffer[:3], buffer[3:]] if cut == "slices" else [buffer[:, ::2], buffer[:, 1::2]]
    own = [Parameter(piece.clone()) for piece in pieces]
    pieces = [Parameter(piece) for piece in pieces]
    one, other = sgd(pieces), sgd(own)
    train(one, 30)
    train(other, 30)
    assert one.scale == pytest.approx(other.scale, rel=1e-9)
    for p, q in zip(pieces, own, strict=True):
        torch.testing.assert_close(p, q)


# ---- a state_dict that was not copied


@pytest.mark.parametrize("layout", ["delta", "delta+ref"])
def test_a_state_dict_that_training_has_changed_is_refused(layout):
    opt = sgd(tensors(), delta_layout=layout)
    train(opt, 5)
    best, copied = opt.state_dict(), copy.deepcopy(opt.state_dict())
    train(opt, 5)
    scale = opt.scale
    with refused("STATE_DICT_NOT_COPIED", ResumeError):
        opt.load_state_dict(best)
    with refused("STATE_DICT_NOT_COPIED", ResumeError):
        opt.load_state_dict({**best})
    assert opt.scale == scale
    assert opt.last_step == 10
    opt.load_state_dict(copied)
    assert opt.last_step == 5


def test_a_state_dict_that_nothing_has_changed_loads_without_a_copy():
    opt = sgd(tensors())
    train(opt, 5)
    opt.load_state_dict(opt.state_dict())
    train(opt, 1)
    other = sgd(tensors())
    other.load_state_dict(opt.state_dict())
    assert other.last_step == opt.last_step == 6


def test_one_that_went_through_a_file_loads():
    opt = sgd(tensors())
    train(opt, 5)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    train(opt, 5)
    file.seek(0)
    opt.load_state_dict(torch.load(file))
    assert opt.last_step == 5


# ---- BASE stepped by someone else


def test_base_does_not_step_by_itself():
    params = tensors()
    base = torch.optim.SGD(params, lr=1.0)
    opt = mechanize(base)
    train(opt, 2)
    problem(opt)
    before = [p.detach().clone() for p in params]
    with refused("BASE_STEPS_ITSELF"):
        base.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(sum(p.sum() for p in params)).backward()
    with refused("BASE_STEPS_ITSELF"):
        scaler.step(base)
    assert all(map(torch.equal, params, before))
    train(opt, 1)
    assert opt.last_step == 3


def test_nor_does_an_optimizer_inside_base():
    class Both(torch.optim.Optimizer):
        def __init__(self, *inner):
            self.inner = inner
            super().__init__([p for o in inner for group in o.param_groups for p in group["params"]], {})
            self.param_groups = [group for o in inner for group in o.param_groups]

        def step(self, closure=None):
            for o in self.inner:
                o.step()

    a, b = tensors(2)
    opt = mechanize(Both(torch.optim.SGD([a], lr=1.0), torch.optim.AdamW([b], lr=1.0)))
    train(opt, 2)
    problem(opt)
    with refused("BASE_STEPS_ITSELF"):
        opt.base.inner[1].step()
    train(opt, 1)


@pytest.mark.parametrize("end", ["close", "del", "again"])
def test_base_is_free_afterwards(end):
    """A notebook's cell that is run twice mechanizes one BASE twice."""
    base = torch.optim.SGD(tensors(), lr=0.1)
    opt = mechanize(base)
    train(opt, 2)
    if end == "again":
        opt = mechanize(base)
        train(opt, 2)
        assert opt.last_step == 2
        return
    opt.close()
    if end == "del":
        del opt
    problem(base)
    base.step()


def test_a_copy_guards_its_own_base():
    opt = copy.deepcopy(sgd(tensors()))
    train(opt, 2)
    problem(opt)
    with refused("BASE_STEPS_ITSELF"):
        opt.base.step()


# ---- where a step is called


@pytest.mark.parametrize("layout", ["delta", "delta+ref", "ref"])
def test_steps_within_inference_mode_are_steps(layout):
    one, other = sgd(tensors(), delta_layout=layout), sgd(tensors(), delta_layout=layout)
    seen = []
    one.register_step_post_hook(lambda *_: seen.append(one.last_step))
    for t in range(9):
        problem(one)
        with torch.inference_mode(t % 3 == 0):
            one.step()
        if t == 4:
            saved = copy.deepcopy(one.state_dict())
            with torch.inference_mode():
                one.load_state_dict(saved)
    train(other, 9)
    assert seen == list(range(1, 10)), "a hook is called once a step"
    assert one.scale == other.scale


def test_a_compiled_loop_takes_the_same_steps():
    one, other = sgd(tensors()), sgd(tensors())
    scales = []

    @torch.compile(backend="eager")
    def loop():
        problem(one)
        one.step()

    for _ in range(4):
        loop()
        train(other)
        scales.append(one.scale == other.scale)
    assert all(scales)
    assert one.last_step == 4
    assert one.scale > 0


def test_threads_that_share_an_optimizer_step_one_after_the_other():
    class Slow(torch.optim.SGD):
        inside = 0

        def step(self, closure=None):
            self.inside += 1
            assert self.inside == 1
            super().step()
            threading.Event().wait(0.005)
            self.inside -= 1

    params = tensors()
    opt = mechanize(Slow(params, lr=1.0))
    problem(opt)
    failed = []

    def steps():
        try:
            for _ in range(5):
                opt.step()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=steps) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert opt.last_step == 15
