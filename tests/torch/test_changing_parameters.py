"""Parameters that come, leave, or get another form in the middle of a training."""

import copy
import gc
import weakref

import pytest
import torch

from mechanicd.client import ConfigMismatch, InvalidArgument
from mechanicd.torch import mechanize

LAYOUTS = ["delta", "delta+ref", "ref"]


def kept(opt):
    """How many parameters the optimizer keeps anything of."""
    memory, passes = opt._stepper.memory, opt._stepper.passes
    tables = (memory.delta, memory.ref, memory.placed, memory.form, memory.left, passes._saved, passes._buffers)
    return len({id(p) for table in tables for p in table})


def train(opt, steps=1):
    for _ in range(steps):
        opt.zero_grad()
        params = [p for group in opt.param_groups for p in group["params"] if p.requires_grad]
        sum((p.float() - 1).pow(2).sum() for p in params).backward()
        opt.step()


# ---- parameters that leave


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replaced_parameters_leave_nothing_behind(dtype, layout):
    """Densify and prune, as in 3D Gaussian splatting: another number of rows each time, and Adam's state goes along."""
    p = torch.nn.Parameter(torch.randn(20, 3).to(dtype))
    opt = mechanize(torch.optim.Adam([p], lr=1.0), delta_layout=layout)
    former = []
    for k in range(300):
        p = opt.param_groups[0]["params"][0]
        train(opt)
        former.append(weakref.ref(p))
        rows = torch.arange(20 + k % 5) % len(p)
        new = torch.nn.Parameter(p.detach()[rows].clone())
        state = opt.state.pop(p)
        state = {name: value[rows] if value.dim() else value for name, value in state.items()}
        opt.state[new] = state
        opt.param_groups[0]["params"][0] = new
    train(opt)
    del p, new, state
    gc.collect()
    assert kept(opt) == 1
    assert not any(ref() is not None for ref in former), "the tensors themselves are freed"


def test_pruned_parameters_are_freed_at_the_next_step():
    params = [torch.nn.Parameter(torch.randn(3)) for _ in range(10)]
    opt = mechanize(torch.optim.SGD(params, lr=1.0), scale_groups="param_group")
    train(opt, 5)
    gone = [weakref.ref(p) for p in params[3:]]
    gone_deltas = [weakref.ref(opt._stepper.memory.delta[p]) for p in params[3:]]
    opt.param_groups[0]["params"] = params = params[:3]
    train(opt)
    gc.collect()
    assert kept(opt) == 3
    assert not any(ref() is not None for ref in gone + gone_deltas)
    assert len(opt.state_dict()["state"]) == 3


def test_a_removed_group_is_freed():
    first, second = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(4))
    opt = mechanize(torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=1.0))
    train(opt, 5)
    del opt.param_groups[1]
    gone = weakref.ref(second)
    del second
    train(opt)
    gc.collect()
    assert kept(opt) == 1
    assert gone() is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_parameter_that_comes_back_starts_anew(layout):
    first, second = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(4))
    opt = mechanize(torch.optim.SGD([first, second], lr=1.0), s_init=1e-3, delta_layout=layout)
    train(opt, 30)
    opt.param_groups[0]["params"] = [first]
    train(opt, 5)
    opt.param_groups[0]["params"] = [first, second]
    second.data.fill_(9.0)
    opt.zero_grad()
    (first.sum() + 0 * second.sum()).backward()
    opt.step()
    assert torch.equal(second.detach(), torch.full((4,), 9.0))
    memory = opt._stepper.memory
    if layout != "ref":
        assert not memory.delta[second].any()
    assert torch.equal(memory.ref.get(second, second.detach()), second.detach())


def test_parameters_that_change_groups_keep_their_delta():
    params = [torch.nn.Parameter(torch.randn(3)) for _ in range(4)]
    opt = mechanize(torch.optim.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=1.0))
    train(opt, 5)
    before = [opt._stepper.memory.delta[p] for p in params]
    opt.param_groups[0]["params"], opt.param_groups[1]["params"] = params[2:], params[:2]
    train(opt)
    assert all(opt._stepper.memory.delta[p] is D for p, D in zip(params, before, strict=True))


# ---- parameters that change their form


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(12, 3), (6, 3), (10, 4), (30,)])
def test_a_resized_parameter_is_refused_until_it_starts_again(layout, shape):
    p, other = torch.nn.Parameter(torch.randn(10, 3)), torch.nn.Parameter(torch.randn(5))
    opt = mechanize(torch.optim.SGD([p, other], lr=1.0), s_init=1e-3, delta_layout=layout)
    train(opt, 3)
    p.data = (
        p.data.view(-1)[: torch.Size(shape).numel()].view(shape)
        if p.numel() >= torch.Size(shape).numel()
        else torch.zeros(shape)
    )
    before, S, step = [p.detach().clone(), other.detach().clone()], opt.scale, opt.last_step
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="start_again") as caught:
            train(opt)
        assert caught.value.reason == "PARAMETER_RESHAPED"
        assert torch.equal(p, before[0])
        assert torch.equal(other, before[1])
    assert (opt.scale, opt.last_step) == (S, step)
    opt.start_again([p])
    train(opt, 20)
    assert opt.last_step == step + 20
    assert not torch.equal(p, before[0])
    assert opt.scale > 0


def test_a_gradient_from_before_the_resize_is_refused():
    p = torch.nn.Parameter(torch.randn(4))
    opt = mechanize(torch.optim.SGD([p], lr=1.0))
    train(opt, 3)
    p.data = torch.ones(6)
    opt.start_again([p])
    with pytest.raises(InvalidArgument, match="backward") as caught:
        opt.step()
    assert caught.value.reason == "GRADIENT_RESHAPED"
    assert torch.equal(p.detach(), torch.ones(6))
    train(opt)


def test_a_vocabulary_grown_in_place_trains_on_after_start_again():
    torch.manual_seed(0)
    table, head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 1)
    model = torch.nn.Sequential(table, head)
    opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0))

    def step():
        opt.zero_grad()
        (model(torch.arange(table.weight.shape[0])) - 1).pow(2).mean().backward()
        opt.step()

    for _ in range(20):
        step()
    table.weight.data = torch.cat([table.weight.data, torch.zeros(3, 4)])
    with pytest.raises(InvalidArgument, match=r"opt\.state\.pop"):
        step()
    opt.start_again([table.weight])
    opt.state.pop(table.weight)
    for _ in range(5):
        step()
    assert opt.last_step == 25


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
)
def test_a_model_whose_dtype_changes_amid_a_run_trains_on(before, after, layout):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1).to(before)
    x = torch.randn(32, 8)
    opt = mechanize(torch.optim.SGD(model.parameters(), lr=1.0), s_init=1e-3, delta_layout=layout)

    def step(factor=1.0):
        opt.zero_grad()
        loss = (model(x.to(model.weight.dtype)).float() - 1).pow(2).mean()
        (factor * loss).backward()
        opt.step()
        return loss.item()

    for _ in range(60):
        reached = step()
    model.to(after)
    there, S = model.weight.detach().clone(), opt.scale
    step(0.0)
    torch.testing.assert_close(model.weight.detach(), there, rtol=1e-5, atol=1e-5)
    memory = opt._stepper.memory
    low = after in (torch.bfloat16, torch.float16)
    if layout != "ref" or low:
        assert memory.delta[model.weight].dtype is (torch.float32 if low else after)
    assert (model.weight in memory.ref) == (low or layout != "delta")
    for _ in range(60):
        last = step()
    assert last < reached * 1.1 + 0.02
    assert opt.scale > 0.1 * S


@pytest.mark.parametrize("layout", ["delta", "delta+ref"])
def test_a_parameter_of_another_memory_order_trains_on(layout):
    """model.to(memory_format=torch.channels_last) gives parameters other strides."""
    results = []
    for turn in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3)
        x = torch.randn(2, 3, 8, 8)
        opt = mechanize(torch.optim.SGD(model.parameters(), lr=1.0), s_init=1e-3, delta_layout=layout)
        for step in range(20):
            if turn and step == 10:
                model.to(memory_format=torch.channels_last)
            opt.zero_grad()
            model(x).pow(2).mean().backward()
            opt.step()
        results.append((model.weight.detach(), opt.scale))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)


@pytest.mark.parametrize("layout", ["delta", "delta+ref"])
def test_what_is_kept_follows_a_parameter_to_its_device(layout):
    """Here to the only other device that every machine has, and not further: it has no values."""
    from mechanicd.torch import _changes

    p = torch.nn.Parameter(torch.randn(4))
    opt = mechanize(torch.optim.SGD([p], lr=1.0), delta_layout=layout)
    train(opt, 3)
    memory = opt._stepper.memory
    q = torch.nn.Parameter(torch.empty(4, device="meta"))
    memory.move(p, q)
    assert not memory.fits(q)
    _changes.follow(memory, q)
    assert memory.fits(q)
    assert memory.delta[q].is_meta
    assert all(ref.is_meta for ref in memory.ref.values())
    assert not memory.left


def test_meta_parameters_are_refused_until_they_have_values():
    with torch.device("meta"):
        model = torch.nn.Linear(4, 1)
    opt = mechanize(torch.optim.SGD(model.parameters(), lr=1.0))
    model.to_empty(device="cpu")  # gives the model new parameters, which the optimizer does not have
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    model(torch.ones(2, 4)).sum().backward()
    with pytest.raises(InvalidArgument, match="materialised") as caught:
        opt.step()
    assert caught.value.reason == "META_PARAMETER"
    assert torch.equal(model.weight.detach(), torch.ones(1, 4))
    opt.param_groups[0]["params"] = list(model.parameters())
    opt.step()
    assert opt.last_step == 1


def test_meta_parameters_that_are_materialised_in_place_train(monkeypatch):
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    with torch.device("meta"):
        model = torch.nn.Linear(4, 1)
    opt = mechanize(torch.optim.SGD(model.parameters(), lr=1.0))
    params = list(model.parameters())
    model.to_empty(device="cpu")
    assert list(map(id, params)) == list(map(id, model.parameters())), "the same objects, with values"
    model.reset_parameters()
    for _ in range(3):
        opt.zero_grad()
        (model(torch.ones(2, 4)) - 1).pow(2).mean().backward()
        opt.step()
    assert opt.scale > 0


def test_lazy_parameters_train_once_they_are_there():
    model = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.Tanh(), torch.nn.LazyLinear(1))
    try:
        base = torch.optim.SGD(model.parameters(), lr=1.0)
    except ValueError:
        pytest.skip("torch refuses them")
    opt = mechanize(base)
    for _ in range(3):
        opt.zero_grad()
        (model(torch.ones(2, 3)) - 1).pow(2).mean().backward()
        opt.step()
    assert opt.scale > 0


def test_requires_grad_can_be_toggled():
    """A frozen parameter rests where it is, whatever S does, and goes on afterwards."""
    for layout in LAYOUTS:
        params = [torch.nn.Parameter(torch.randn(4)) for _ in range(2)]
        opt = mechanize(torch.optim.SGD(params, lr=1.0), s_init=1e-3, delta_layout=layout)
        train(opt, 20)
        params[0].requires_grad_(False)
        there, D = params[0].detach().clone(), opt._stepper.memory.delta.get(params[0])
        train(opt, 5)
        assert torch.equal(params[0], there)
        params[0].requires_grad_(True)
        train(opt, 5)
        assert not torch.equal(params[0], there)
        assert opt._stepper.memory.delta.get(params[0]) is D


# ---- groups that are added


@pytest.mark.parametrize("kind", ["param_group", "tensor"])
@pytest.mark.parametrize("convention", ["paper", "pytorch", "optax", "theory"])
@pytest.mark.parametrize("behind_its_back", [False, True])
def test_a_group_added_amid_a_run_gets_an_s_of_its_own(kind, convention, behind_its_back, problem):
    opt = mechanize(torch.optim.SGD(problem.params[:2], lr=1.0), scale_groups=kind, convention=convention)
    for _ in range(30):
        problem.backward()
        opt.step()
    before = opt.scales
    (opt.base if behind_its_back else opt).add_param_group({"params": problem.params[2:]})
    problem.backward()
    opt.step()
    n = 2 if kind == "param_group" else 4
    assert len(opt.scales) == len(opt._config.scale_groups) == n
    assert opt.last_step == 31
    assert all(abs(S - old) < 0.5 * old for S, old in zip(opt.scales, before, strict=False)), "the others have theirs"
    start = [p.detach().clone() for p in problem.params[2:]]
    for _ in range(60):
        problem.backward()
        opt.step()
    assert all(S > 0 for S in opt.scales)
    assert all(not torch.equal(p, x) for p, x in zip(problem.params[2:], start, strict=True))


def test_the_new_s_is_that_of_a_run_which_begins_there(problem):
    """The group's own S is what it would be if the other group were not there."""
    opt = mechanize(torch.optim.SGD(problem.params[:2], lr=1.0), scale_groups="param_group")
    for _ in range(30):
        problem.backward()
        opt.step()
    opt.add_param_group({"params": problem.params[2:]})
    twin = copy.deepcopy(problem.params[2:])
    alone = mechanize(torch.optim.SGD(twin, lr=1.0))
    for _ in range(30):
        problem.backward()
        for p, q in zip(problem.params[2:], twin, strict=True):
            q.grad = p.grad.clone()
        opt.step()
        alone.step()
        assert opt.scales[1] == alone.scale
        assert all(torch.equal(p, q) for p, q in zip(problem.params[2:], twin, strict=True))


def test_a_tensor_added_to_a_group_in_the_middle_leaves_the_others_their_s(problem):
    groups = [{"params": problem.params[:1]}, {"params": problem.params[2:]}]
    opt = mechanize(torch.optim.SGD(groups, lr=1.0), scale_groups="tensor")
    for _ in range(30):
        problem.backward()
        opt.step()
    first, second, third = opt.scales
    opt.param_groups[0]["params"].append(problem.params[1])
    problem.backward()
    opt.zero_grad()  # a step in which nothing moves
    opt.step()
    assert opt.scales == (first, 0.0, second, third)


@pytest.mark.parametrize("kind", ["param_group", "tensor"])
def test_a_lost_group_is_refused_by_name(kind, problem):
    groups = [{"params": problem.params[:2]}, {"params": problem.params[2:]}]
    opt = mechanize(torch.optim.SGD(groups, lr=1.0), scale_groups=kind)
    problem.backward()
    opt.step()
    gone = opt.param_groups.pop()
    before = [p.detach().clone() for p in problem.params]
    problem.backward()
    with pytest.raises(InvalidArgument, match='scale_groups="all"') as caught:
        opt.step()
    assert caught.value.reason == "GROUP_COUNT_MISMATCH"
    assert all(torch.equal(p, x) for p, x in zip(problem.params, before, strict=True))
    opt.param_groups.append(gone)
    opt.step()


def test_a_run_that_has_grown_resumes_bit_for_bit(new_problem):
    problem, twin = new_problem(), new_problem()

    def optimizer(problem, grown):
        opt = mechanize(torch.optim.SGD(problem.params[:2], lr=1.0), scale_groups="param_group")
        if grown:
            opt.add_param_group({"params": problem.params[2:]})
        return opt

    opt = optimizer(problem, grown=False)
    for _ in range(20):
        problem.backward()
        opt.step()
    small = copy.deepcopy(opt.state_dict())
    opt.add_param_group({"params": problem.params[2:]})
    for _ in range(20):
        problem.backward()
        opt.step()
    other = optimizer(twin, grown=True)
    with pytest.raises(ConfigMismatch):
        other.load_state_dict(small)
    with torch.no_grad():
        for p, q in zip(twin.params, problem.params, strict=True):
            p.copy_(q)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(10):
        problem.backward()
        twin.backward()
        opt.step()
        other.step()
        assert opt.scales == other.scales
        assert all(torch.equal(p, q) for p, q in zip(problem.params, twin.params, strict=True))


def test_a_served_run_that_has_grown_goes_on_under_a_name_of_its_own(new_problem, server, project, history):
    problem, twin = new_problem(), new_problem()

    def optimizer(problem, **where):
        return mechanize(torch.optim.SGD(problem.params[:2], lr=1.0), scale_groups="param_group", **where)

    def both(steps):
        for _ in range(steps):
            problem.backward()
            twin.backward()
            opt.step()
            alone.step()
            scales.append(opt.scales)
            assert opt.scales == alone.scales

    scales = []
    where = {"run": "grows", "target": server.target, "project": project}
    opt, alone = optimizer(problem, **where), optimizer(twin)
    both(20)
    for o, p in ((opt, problem), (alone, twin)):
        o.add_param_group({"params": p.params[2:]})
    both(20)
    assert (opt.run, alone.run) == ("grows/2-groups", "")
    saved = copy.deepcopy(opt.state_dict())
    opt.close()
    assert [tuple(record.scale) for record in history(server.target, "grows", project)] == scales[:20]
    assert [tuple(record.scale) for record in history(server.target, "grows/2-groups", project)] == scales[20:]
    # The checkpoint knows: a process that starts with both groups, under the run's own name, continues the grown run.
    resumed = new_problem()
    with torch.no_grad():
        for p, q in zip(resumed.params, problem.params, strict=True):
            p.copy_(q)
    opt = optimizer(resumed, **where)
    opt.add_param_group({"params": resumed.params[2:]})
    opt.load_state_dict(saved)
    problem = resumed
    both(5)
    opt.close()
    assert opt.run == "grows/2-groups"
    assert [record.step for record in history(server.target, "grows/2-groups", project)] == list(range(21, 46))
