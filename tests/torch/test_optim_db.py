"""What PyTorch tests of every optimizer of its own, with each of its option sets, of those optimizers mechanized.

The optimizers, options, schedulers and errors are those of `torch.testing._internal.common_optimizers`. Left out is what has no
meaning for a wrapper: sparse and complex gradients (refused), capture in a CUDA graph (refused), exact numbers of one of
them. Run by `make soak`.
"""

import copy
import io
import itertools

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mechanicd.client import InvalidArgument
from mechanicd.torch import mechanize
from tests.support.soak import SOAK

pytestmark = pytest.mark.soak  # torch's own tests

if SOAK:
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_optimizers import (
        OptimizerErrorEnum,
        _get_optim_inputs_including_global_cliquey_kwargs,
        optim_db,
    )

    REFUSED = {torch.optim.LBFGS: "BASE_KEEPS_WEIGHTS", torch.optim.SparseAdam: "SPARSE_GRADIENT"}
    INFOS = [info for info in optim_db if info.optim_cls not in REFUSED]
    CASES = [
        (info.optim_cls, options.kwargs)
        for info in INFOS
        for options in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info, skip=("differentiable",))
    ]
else:
    REFUSED, INFOS, CASES = {}, [], []


def named(value):
    """A readable id of a class or of options."""
    return value.__name__ if isinstance(value, type) else ",".join(f"{k}={v}" for k, v in value.items()) or "default"


every_case = pytest.mark.parametrize(("cls", "kwargs"), CASES, ids=named)


class Quadratic:
    """‖W·x + b − y‖², with two matrices as parameters, since Muon takes nothing else."""

    def __init__(self, contiguous=True, dtype=torch.float32):
        make = torch.Generator().manual_seed(0)
        self.W = torch.nn.Parameter(torch.randn(10, 5, generator=make, dtype=dtype))
        if not contiguous:
            wide = torch.randn(10, 5, 2, generator=make, dtype=dtype)[..., 0]
            self.W = torch.nn.Parameter(wide)
            assert not self.W.is_contiguous()
        self.b = torch.nn.Parameter(torch.randn(10, 1, generator=make, dtype=dtype))
        self.x, self.y = (torch.randn(n, 1, generator=make, dtype=dtype) for n in (5, 10))
        self.params = [self.W, self.b]

    def loss(self):
        return (self.W @ self.x + self.b - self.y).pow(2).sum()

    def closure(self, opt):
        sign = -1.0 if opt.param_groups[0].get("maximize") else 1.0

        def evaluate():
            opt.zero_grad()
            loss = self.loss()
            (sign * loss).backward()
            return loss.detach()

        return evaluate


def made(cls, kwargs, params, s_init=1e-4, **settings):
    return mechanize(cls(params, **kwargs), s_init=s_init, **settings)


def train(problem, opt, steps, schedulers=()):
    for _ in range(steps):
        loss = opt.step(problem.closure(opt))
        for scheduler in schedulers:
            scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    return problem.loss().item()


def same(params, others):
    return all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


# ---- it goes in the right direction


@every_case
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_the_loss_falls(cls, kwargs, contiguous):
    problem = Quadratic(contiguous)
    opt, first = made(cls, kwargs, problem.params), problem.loss().item()
    assert train(problem, opt, 60) < first
    assert opt.scale > 1e-4


@pytest.mark.parametrize(
    ("cls", "schedulers"),
    [(info.optim_cls, schedulers) for info in INFOS for schedulers in info.scheduler_inputs],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(len(value)),
)
@pytest.mark.parametrize("on", ["mechanized", "base"])
def test_the_loss_falls_with_schedulers(cls, schedulers, on):
    problem = Quadratic()
    opt, first = made(cls, {}, problem.params), problem.loss().item()
    assert train(problem, opt, 60, [make(opt if on == "mechanized" else opt.base) for make in schedulers]) < first


@every_case
def test_groups_have_rates_of_their_own(cls, kwargs):
    problem = Quadratic()
    groups = [{"params": [problem.W]}, {"params": [problem.b], "lr": 1e-3}]
    opt, first = made(cls, kwargs, groups), problem.loss().item()
    assert train(problem, opt, 60) < first
    assert opt.param_groups[1]["lr"] == 1e-3
    assert opt.effective_lr() == pytest.approx([opt.scale * float(group["lr"]) for group in opt.param_groups])


# ---- kernels


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_kernels_agree_over_a_training(info):
    ends = []
    fused = [{"fused": True}] if "cpu" in info.supports_fused_on else []
    foreach = [{"foreach": True}] if "foreach" in info.supported_impls else []
    for options in [{"foreach": False} if foreach else {}, *foreach, *fused]:
        problem = Quadratic(dtype=torch.float64)
        opt = made(info.optim_cls, options, problem.params)
        train(problem, opt, 20)
        ends.append([opt.scale, *problem.W.detach().flatten().tolist()])
    for end in ends[1:]:
        assert end == pytest.approx(ends[0], rel=1e-6, abs=1e-9)


# ---- gradients that are not there, or zero


@every_case
def test_a_step_without_gradients_changes_nothing(cls, kwargs):
    problem = Quadratic()
    opt = made(cls, kwargs, problem.params)
    train(problem, opt, 5)
    before, state = copy.deepcopy(problem.params), copy.deepcopy(opt.base.state_dict())
    opt.zero_grad()
    opt.step()
    assert same(problem.params, before)
    assert repr(opt.base.state_dict()) == repr(state)


@every_case
def test_a_first_step_with_gradients_of_zero_changes_nothing(cls, kwargs):
    problem = Quadratic()
    kwargs = {name: value for name, value in kwargs.items() if name != "weight_decay"}
    if cls in (torch.optim.AdamW, torch.optim.Muon):
        kwargs["weight_decay"] = 0.0
    opt = made(cls, kwargs, problem.params)
    before = copy.deepcopy(problem.params)
    for p in problem.params:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert same(problem.params, before)


# ---- state


@every_case
@pytest.mark.parametrize("through", ["memory", "file"])
def test_a_loaded_training_goes_on_bit_for_bit(cls, kwargs, through):
    problem, again = Quadratic(), Quadratic()
    opt, other = made(cls, kwargs, problem.params), made(cls, kwargs, again.params)
    train(problem, opt, 8)
    saved = opt.state_dict()
    if through == "file":
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
    for q, p in zip(again.params, problem.params, strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(saved if through == "file" else copy.deepcopy(saved))
    train(problem, opt, 8)
    train(again, other, 8)
    assert same(problem.params, again.params)
    assert opt.scales == other.scales


@every_case
def test_an_older_state_dict_loads(cls, kwargs):
    """One from before torch gave the optimizer today's flags."""
    info = next(info for info in INFOS if info.optim_cls is cls)
    problem = Quadratic()
    opt = made(cls, kwargs, problem.params)
    train(problem, opt, 3)
    saved = copy.deepcopy(opt.state_dict())
    for group, flag in itertools.product(saved["param_groups"], info.not_og_supported_flags):
        group.pop(flag, None)
    opt.load_state_dict(saved)
    train(problem, opt, 3)
    assert opt.last_step == 6


@every_case
def test_a_state_dict_with_names_of_the_parameters_loads(cls, kwargs):
    problem, again = Quadratic(), Quadratic()
    opt, other = (
        made(cls, kwargs, [("W", of.W), ("b", of.b)]) if torch.__version__ >= "2.6" else made(cls, kwargs, of.params)
        for of in (problem, again)
    )
    train(problem, opt, 3)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert other.param_groups[0].get("param_names") == opt.param_groups[0].get("param_names")


@every_case
def test_a_copy_has_all_public_attributes_and_trains_alike(cls, kwargs):
    problem = Quadratic()
    opt = made(cls, kwargs, problem.params)
    train(problem, opt, 5)
    twin, copied = copy.deepcopy((problem, opt))
    assert {name for name in dir(copied) if name[0] != "_"} == {name for name in dir(opt) if name[0] != "_"}
    train(problem, opt, 5)
    train(twin, copied, 5)
    assert same(problem.params, twin.params)


@every_case
def test_the_state_is_not_empty_after_a_step(cls, kwargs):
    if cls is torch.optim.SGD and not kwargs.get("momentum"):
        pytest.skip("it keeps none")
    problem = Quadratic()
    opt = made(cls, kwargs, problem.params)
    train(problem, opt, 1)
    assert all(opt.state[p] for p in problem.params)
    assert opt.state is opt.base.state


# ---- hooks


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_hooks_of_steps_and_state_dicts_run_once_in_order(info):
    problem, seen = Quadratic(), []
    opt = made(info.optim_cls, {}, problem.params)
    opt.register_step_pre_hook(lambda o, a, k: seen.append("step"))
    opt.register_step_post_hook(lambda o, a, k: seen.append("stepped"))
    opt.register_state_dict_pre_hook(lambda o: seen.append("save"))
    opt.register_state_dict_post_hook(lambda o, sd: seen.append("saved"))
    opt.register_load_state_dict_pre_hook(lambda o, sd: seen.append("load"))
    opt.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    opt.register_load_state_dict_pre_hook(lambda o, sd: seen.append("first"), prepend=True)
    train(problem, opt, 1)
    opt.load_state_dict(opt.state_dict())
    assert seen == ["step", "stepped", "save", "saved", "first", "load", "loaded"]


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_a_pre_hook_may_change_the_arguments(info):
    problem = Quadratic()
    opt = made(info.optim_cls, {}, problem.params)
    opt.register_step_pre_hook(lambda o, args, kwargs: ((o, problem.closure(o)), {}))
    assert opt.step() is not None
    assert opt.last_step == 1


# ---- errors


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_errors_are_torchs(info):
    """BASE's own, when it is made; and of its steps, with the weights as they were."""
    for error in info.optim_error_inputs_func("cpu", torch.float32):
        options = error.optimizer_error_input
        params = options.params if options.params is not None else [torch.nn.Parameter(torch.randn(2, 3))]
        if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
            expected = UserWarning if issubclass(error.error_type, Warning) else error.error_type
            context = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
            with context(expected, match=error.error_regex):
                mechanize(info.optim_cls(params, **options.kwargs))
        else:
            with pytest.raises((error.error_type, InvalidArgument)):
                mechanize(info.optim_cls(params, **options.kwargs)).step()


@pytest.mark.parametrize("cls", list(REFUSED), ids=named)
def test_what_can_be_no_base_is_refused(cls):
    with pytest.raises(InvalidArgument, match=REFUSED[cls]):
        mechanize(cls(Quadratic().params))


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_differentiable_and_complex_are_refused(info):
    if "differentiable" in info.supported_impls:
        with pytest.raises(InvalidArgument, match="BASE_DIFFERENTIABLE"):
            mechanize(info.optim_cls(Quadratic().params, differentiable=True))
    with pytest.raises(InvalidArgument, match="COMPLEX_PARAMETER"):
        mechanize(info.optim_cls([torch.nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))]))
