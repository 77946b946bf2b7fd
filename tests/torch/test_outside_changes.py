"""Weights that something else than a step changes: the change stays, and MECHANIC's Δ and S see nothing of it."""

import copy
import itertools

import pytest
import torch

from mechanicd.client import InvalidArgument
from mechanicd.torch import mechanize

KINDS = [
    (torch.float32, "delta"),
    (torch.float64, "delta"),
    (torch.float32, "delta+ref"),
    (torch.float64, "delta+ref"),
    (torch.float32, "ref"),
    (torch.bfloat16, "delta"),
    (torch.bfloat16, "delta+ref"),
    (torch.float16, "delta"),
]
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-9, torch.bfloat16: 1e-5, torch.float16: 1e-5}
"""How far a weight may be from where it was put, as a part of how far training has moved it. In a step without a gradient S
itself moves by about 1e-12."""


class Training:
    """A layer that learns, long enough for S and Δ to matter."""

    def __init__(self, dtype, layout, steps=100, base=torch.optim.SGD, **settings):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(8, 1).to(dtype)
        self.x = torch.randn(32, 8).to(dtype)
        self.opt = mechanize(base(self.model.parameters(), lr=1.0), s_init=1e-3, delta_layout=layout, **settings)
        self.steps(steps)
        assert self.opt.scale > 1e-3, "it has learned"

    @property
    def weight(self):
        return self.model.weight

    def backward(self, factor=1.0):
        self.opt.zero_grad()
        (factor * (self.model(self.x) - 1).pow(2).mean()).backward()

    def steps(self, count):
        for _ in range(count):
            self.backward()
            self.opt.step()

    def rest(self, count=1):
        """Steps whose gradient is zero: nothing but an error moves a weight. (SGD as BASE.)"""
        for _ in range(count):
            self.backward(0.0)
            self.opt.step()

    def moved(self):
        """How far training has moved the weights: S·Δ."""
        memory = self.opt._stepper.memory
        ref = memory.ref.get(self.weight)
        if ref is None:
            return (memory.placed[self.weight] * memory.delta[self.weight]).abs().max().item()
        return (self.weight.detach().double() - ref.double()).abs().max().item()


def deltas(opt):
    return [entry["mechanic_delta"].clone() for entry in opt.state_dict()["state"].values() if "mechanic_delta" in entry]


def fill(weight):
    with torch.no_grad():
        weight.fill_(5.0)


def load(weight):
    layer = torch.nn.Linear(8, 1).to(weight.dtype)
    layer.weight = weight  # as load_state_dict does it
    layer.load_state_dict({"weight": torch.linspace(-1, 1, 8).view(1, 8), "bias": torch.zeros(1)})


def clip_through_data(weight):
    weight.data.clamp_(-0.01, 0.01)


def another_storage(weight):
    weight.data = torch.linspace(-2, 2, 8).view(1, 8).to(weight.dtype)


def vector(weight):
    torch.nn.utils.vector_to_parameters(torch.linspace(0, 3, 8).to(weight.dtype), [weight])


def prune(weight):
    weight.data.mul_(torch.tensor([1, 0, 0, 1, 1, 0, 1, 0], dtype=weight.dtype))


def average_with_a_peer(weight):
    with torch.no_grad():
        weight.lerp_(torch.full_like(weight, 3.0), 0.5)


def one_element(weight):
    weight.data[0, 3] = -7.0


CHANGES = [fill, load, clip_through_data, another_storage, vector, prune, average_with_a_peer, one_element]


@pytest.mark.parametrize(("dtype", "layout"), KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_an_outside_change_stays(change, dtype, layout):
    training = Training(dtype, layout)
    S, moved = training.opt.scale, training.moved()
    before = deltas(training.opt)
    change(training.weight)
    there = training.weight.detach().clone()
    training.rest()
    torch.testing.assert_close(training.weight.detach(), there, rtol=CLOSE[dtype], atol=moved * CLOSE[dtype])
    for D, E in zip(deltas(training.opt), before, strict=True):
        assert torch.equal(D, E), "Δ has not seen it"
    training.rest(3)
    torch.testing.assert_close(training.weight.detach(), there, rtol=CLOSE[dtype], atol=2 * moved * CLOSE[dtype])
    assert training.opt.scale <= S * 1.001


@pytest.mark.parametrize(("dtype", "layout"), [kind for kind in KINDS if kind[1] != "ref"])
def test_training_goes_on_from_it_as_from_a_start_there(dtype, layout):
    """Against the same training whose x_ref is moved by hand: the sums, Δ and S of the next steps are the same."""
    training = Training(torch.float64, "delta+ref")
    oracle = copy.deepcopy(training)
    one = training.weight, oracle.weight
    with torch.no_grad():
        one[0].add_(0.25)
        memory = oracle.opt._stepper.memory
        memory.ref[one[1]] += 0.25
        one[1].copy_(torch.add(memory.ref[one[1]], memory.delta[one[1]], alpha=memory.placed[one[1]]))
        memory.left.clear()
    for _ in range(20):
        training.steps(1)
        oracle.steps(1)
        torch.testing.assert_close(training.weight.detach(), oracle.weight.detach(), rtol=1e-12, atol=1e-12)
    assert training.opt.scale == pytest.approx(oracle.opt.scale, rel=1e-9)


@pytest.mark.parametrize(("dtype", "layout"), KINDS)
def test_no_change_leaves_x_ref_to_the_last_bit(dtype, layout):
    """Also an average that is swapped in for an evaluation, and out again."""
    training = Training(dtype, layout, steps=20)
    memory = training.opt._stepper.memory
    before = {p: ref.clone() for p, ref in memory.ref.items()}
    for _ in range(20):
        held = training.weight.detach().clone()
        training.weight.data.zero_()
        training.weight.data.copy_(held)
        training.steps(1)
    assert memory.ref.keys() == before.keys()
    for p, ref in before.items():
        assert memory.ref[p].dtype is ref.dtype
        assert torch.equal(memory.ref[p], ref)


@pytest.mark.parametrize(("dtype", "layout"), KINDS)
def test_a_change_while_a_parameter_sits_out_stays(dtype, layout):
    """Without a gradient, or with an lr of 0."""
    for how in ("no gradient", "lr"):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(6).to(dtype)) for _ in range(2)]
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        opt = mechanize(torch.optim.SGD(groups, lr=1.0), s_init=1e-3, delta_layout=layout)

        def step(params=params, opt=opt, factor=1.0, out=()):
            opt.zero_grad()
            sum((factor * (p.float() - 1).pow(2).sum() for i, p in enumerate(params) if i not in out)).backward()
            opt.step()

        for _ in range(50):
            step()
        if how == "lr":
            opt.param_groups[0]["lr"] = 0.0
        out = () if how == "lr" else (0,)
        step(out=out)
        memory, low = opt._stepper.memory, dtype in (torch.bfloat16, torch.float16)
        S, D = memory.placed[params[0]], memory.delta.get(params[0])
        moved = S * D if D is not None else params[0].detach() - memory.ref[params[0]]
        params[0].data.fill_(3.0)
        for _ in range(3):
            step(out=out)
        assert torch.equal(params[0].detach(), torch.full_like(params[0], 3.0)), "it sits out"
        opt.param_groups[0]["lr"] = 1.0
        step(factor=0.0)
        caught_up = 3.0 + (opt.scale - S) / S * moved  # S has moved meanwhile, and x follows it from where it is
        torch.testing.assert_close(params[0].detach(), caught_up.to(dtype), rtol=1e-2 if low else 1e-4, atol=0)


@pytest.mark.parametrize(("dtype", "layout"), KINDS)
def test_clipping_after_each_step_holds_the_weights_in_their_box(dtype, layout):
    """As a WGAN's critic does; the training must still be able to leave the edge of the box."""
    training = Training(dtype, layout, steps=50)
    for _ in range(30):
        training.steps(1)
        for p in training.model.parameters():
            p.data.clamp_(-0.05, 0.05)
    training.rest()
    for p in training.model.parameters():
        assert p.abs().max().item() <= 0.0501 + 1e-6 * training.moved()


@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, "delta+ref"), (torch.bfloat16, "delta")])
def test_a_wrapper_that_averages_outside_keeps_its_average(dtype, layout):
    """Lookahead around the mechanized optimizer: every fifth step the weights go half of the way back."""
    training = Training(dtype, layout)
    slow = [p.detach().clone() for p in training.model.parameters()]
    losses = []
    for step in range(1, 61):
        training.backward()
        losses.append((training.model(training.x) - 1).pow(2).mean().item())
        training.opt.step()
        if step % 5 == 0:
            with torch.no_grad():
                for p, held in zip(training.model.parameters(), slow, strict=True):
                    held.lerp_(p, 0.5)
                    p.copy_(held)
            there = training.weight.detach().clone()
            training.rest()
            torch.testing.assert_close(training.weight.detach(), there, rtol=1e-5, atol=training.moved() * 1e-5)
    assert losses[-1] < losses[0] * 1.5


@pytest.mark.parametrize(("dtype", "layout"), KINDS)
def test_two_optimizers_over_one_parameter(dtype, layout):
    """A plain one beside the mechanized one, then two mechanized ones: each keeps what the other does."""
    training = Training(dtype, layout)
    other = torch.optim.SGD(training.model.parameters(), lr=0.5)
    training.backward(0.0)
    for p in training.model.parameters():
        p.grad.fill_(1.0)
    other.step()
    there = training.weight.detach().clone()
    training.rest()
    torch.testing.assert_close(training.weight.detach(), there, rtol=1e-5, atol=training.moved() * 1e-5)
    second = mechanize(torch.optim.SGD(training.model.parameters(), lr=1.0), s_init=1e-3, delta_layout=layout)
    for _ in range(20):
        training.backward()
        second.step()
        there = training.weight.detach().clone()
        training.rest()
        torch.testing.assert_close(training.weight.detach(), there, rtol=1e-5, atol=training.moved() * 1e-5)


@pytest.mark.parametrize(("dtype", "layout"), [kind for kind in KINDS if kind[1] != "ref"])
def test_a_change_after_a_checkpoint_was_loaded_stays(dtype, layout):
    """What the last step left is not in the checkpoint; it is x_ref + S·Δ."""
    training = Training(dtype, layout)
    saved = copy.deepcopy({"model": training.model.state_dict(), "opt": training.opt.state_dict()})
    other = Training(dtype, layout)
    other.model.load_state_dict(saved["model"])
    other.opt.load_state_dict(saved["opt"])
    moved = other.moved()
    other.weight.data.clamp_(-0.01, 0.01)
    there = other.weight.detach().clone()
    other.rest()
    torch.testing.assert_close(other.weight.detach(), there, rtol=1e-5, atol=moved * 1e-5)


@pytest.mark.parametrize(("dtype", "layout"), [kind for kind in KINDS if kind[1] != "ref"])
def test_a_changed_training_resumes_bit_for_bit(dtype, layout):
    training = Training(dtype, layout)
    training.weight.data.mul_(0.1)
    training.steps(5)
    saved = copy.deepcopy({"model": training.model.state_dict(), "opt": training.opt.state_dict()})
    other = Training(dtype, layout)
    other.model.load_state_dict(saved["model"])
    other.opt.load_state_dict(saved["opt"])
    for _ in range(10):
        training.steps(1)
        other.steps(1)
        assert torch.equal(training.weight, other.weight)
    assert training.opt.scale == other.opt.scale


def test_weights_that_were_broken_and_restored_train_on():
    """NaN in a weight: steps are skipped until somebody puts good weights back."""
    for dtype, layout in KINDS:
        training = Training(dtype, layout)
        good, S, moved = training.weight.detach().clone(), training.opt.scale, training.moved()
        training.weight.data[0, 0] = float("nan")
        training.steps(2)
        assert training.opt.scale == S
        training.weight.data.copy_(good)
        training.rest()
        torch.testing.assert_close(training.weight.detach(), good, rtol=1e-5, atol=moved * 1e-5)
        assert training.moved() == pytest.approx(moved, rel=0.01)


def test_a_base_that_fails_after_an_outside_change_leaves_the_changed_weights():
    for dtype, layout in KINDS:
        training = Training(dtype, layout)
        base = training.opt.base
        step = base.step
        fill(training.weight)
        there = training.weight.detach().clone()

        def fails(step=step):
            step()
            raise RuntimeError("out of memory")

        base.step = fails
        with pytest.raises(RuntimeError, match="out of memory"):
            training.steps(1)
        assert torch.equal(training.weight.detach(), there)


def test_with_a_grad_scaler_it_stays_too():
    training = Training(torch.float32, "delta+ref")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    fill(training.weight)
    training.opt.zero_grad()
    scaler.scale(0 * training.model(training.x).float().sum()).backward()
    scaler.step(training.opt)
    scaler.update()
    torch.testing.assert_close(training.weight.detach(), torch.full_like(training.weight, 5.0), rtol=1e-5, atol=0)


# ---- weights that are two parameters


def test_one_parameter_in_two_places_is_one():
    a, b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    b.weight = a.weight
    opt = mechanize(torch.optim.SGD(torch.nn.Sequential(a, b).parameters(), lr=1.0))
    b(a(torch.ones(2, 4))).sum().backward()
    opt.step()
    assert len(opt.param_groups[0]["params"]) == 1


def test_two_parameters_in_one_storage_are_refused():
    a, b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    b.weight.data = a.weight.data
    opt = mechanize(torch.optim.SGD([a.weight, b.weight], lr=1.0))
    b(a(torch.ones(2, 4))).sum().backward()
    before = a.weight.detach().clone()
    with pytest.raises(InvalidArgument, match=r"a\.weight = b\.weight") as caught:
        opt.step()
    assert caught.value.reason == "SHARED_STORAGE"
    assert torch.equal(a.weight, before)


# ---- start again


@pytest.mark.parametrize(("dtype", "layout"), KINDS)
def test_start_again_takes_the_weights_as_they_are_with_no_delta(dtype, layout):
    training = Training(dtype, layout)
    S = training.opt.scale
    fill(training.weight)
    training.opt.start_again()
    assert training.opt.scale == S, "S stays"
    training.rest()
    assert torch.equal(training.weight.detach(), torch.full_like(training.weight, 5.0)), "to the last bit"
    memory = training.opt._stepper.memory
    for p in training.model.parameters():
        if p in memory.delta:
            assert not memory.delta[p].any()
        if p in memory.ref:
            assert torch.equal(memory.ref[p].to(p.dtype), p.detach())
            assert memory.ref[p].dtype is p.dtype
    training.steps(20)
    assert not torch.equal(training.weight.detach(), torch.full_like(training.weight, 5.0)), "and it learns"


def test_start_again_for_some_parameters_leaves_the_others():
    training = Training(torch.float32, "delta+ref")
    bias = training.opt._stepper.memory.delta[training.model.bias].clone()
    training.opt.start_again([training.weight])
    training.rest()
    memory = training.opt._stepper.memory
    assert not memory.delta[training.weight].any()
    assert torch.equal(memory.delta[training.model.bias], bias)
    training.opt.start_again(training.model.bias)  # one alone
    training.rest()
    assert not memory.delta[training.model.bias].any()


def test_a_relora_merge_starts_its_adapter_again():
    """The product of the factors goes into the frozen weight, and the factors start anew, with BASE's moments."""
    torch.manual_seed(0)
    W, A, B = torch.randn(4, 6), torch.nn.Parameter(torch.randn(2, 6)), torch.nn.Parameter(torch.zeros(4, 2))
    x, y = torch.randn(64, 6), torch.randn(64, 4)
    opt = mechanize(torch.optim.AdamW([A, B], lr=1.0), delta_layout="delta+ref", s_init=1e-4)

    def loss():
        return (x @ (W + B @ A).T - y).pow(2).mean()

    losses = []
    for step in range(1, 301):
        opt.zero_grad()
        found = loss()
        found.backward()
        opt.step()
        losses.append(found.item())
        if step % 100 == 0:
            with torch.no_grad():
                before = loss().item()
                W += B @ A
                A.normal_()
                B.zero_()
            opt.start_again([A, B])
            opt.state.clear()
            assert loss().item() == pytest.approx(before, rel=1e-5)
            opt.zero_grad()
            loss().backward()
            B.grad.zero_()
            A.grad.zero_()
            opt.step()
            assert loss().item() == pytest.approx(before, rel=1e-5), "B is still 0"
    assert losses[-1] < 0.7 * losses[0]


def test_start_again_is_resumed():
    training = Training(torch.bfloat16, "delta")
    training.opt.start_again()
    saved = copy.deepcopy(training.opt.state_dict())
    other = copy.deepcopy(training.model)
    opt = mechanize(torch.optim.SGD(other.parameters(), lr=1.0), s_init=1e-3)
    opt.load_state_dict(saved)
    assert opt.scale == training.opt.scale
    for _ in range(5):
        for model, o in ((training.model, training.opt), (other, opt)):
            o.zero_grad()
            (model(training.x) - 1).pow(2).mean().backward()
            o.step()
        assert all(torch.equal(p, q) for p, q in zip(training.model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("which", [[torch.zeros(3)], ["weight"], torch.zeros(3)])
def test_start_again_refuses_what_is_not_its_own(which):
    training = Training(torch.float32, "delta+ref")
    before = deltas(training.opt)
    with pytest.raises(InvalidArgument, match="no parameter of this optimizer") as caught:
        training.opt.start_again(itertools.chain([training.weight], which) if isinstance(which, list) else which)
    assert caught.value.reason == "PARAMETER_UNKNOWN"
    assert all(torch.equal(D, E) for D, E in zip(deltas(training.opt), before, strict=True))
