"""The fused kernels, held to the Reference on the same tensors. Needs a CUDA device; nothing else here does."""

import itertools

import pytest
import torch

from mechanicd.client import InvalidArgument
from mechanicd.torch import _passes, mechanize
from mechanicd.torch._memory import Memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPES = [(1,), (3,), (128, 257), (16384,), (16385,), (100_003,), (64, 3, 7, 7), (5, 0), (2048, 512)]


def tensors(dtype, layout, seed=0):
    """Parameters with gradients, some in channels_last, and a memory with Δ in it."""
    make = torch.Generator("cuda").manual_seed(seed)
    memory, params = Memory(layout), []
    for number, shape in enumerate(SHAPES):
        value = torch.randn(shape, generator=make, device="cuda").to(dtype)
        if len(shape) == 4:
            value = value.to(memory_format=torch.channels_last)
        p = torch.nn.Parameter(value)
        p.grad = (
            torch.randn(shape, generator=make, device="cuda")
            .to(dtype)
            .to(memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format)
        )
        memory.join(p, 0.0)
        memory.delta[p].copy_(torch.randn(shape, generator=make, device="cuda"))
        memory.placed[p] = 1e-3 * (number % 3)
        if p in memory.ref:  # x is where its master copy says
            with torch.no_grad():
                p.copy_(torch.add(memory.ref[p].float(), memory.delta[p], alpha=memory.placed[p]))
        params.append(p)
    return params, memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["delta", "delta+ref"])
@pytest.mark.parametrize("groups", [1, 3, 9])
def test_the_kernels_do_what_the_reference_does(dtype, layout, groups):
    results = []
    for fused in (True, False):
        params, memory = tensors(dtype, layout)
        passes = _passes.Passes(memory, fused=fused)
        passes.launch([params[i::groups] for i in range(groups)])
        found = passes.read()
        assert bool(passes._devices) == fused
        with torch.no_grad():
            for p in params:
                p.add_(torch.sin(p * 3.0))  # BASE
        passes.apply({p: 2e-3 + 1e-4 * i for i, p in enumerate(params)})
        results.append((found, [p.detach().clone() for p in params], [memory.delta[p] for p in params]))
    (found, params, deltas), (expected, others, other_deltas) = results
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-9)
    for p, q in itertools.chain(zip(params, others, strict=True), zip(deltas, other_deltas, strict=True)):
        torch.testing.assert_close(p, q, rtol=1e-6 if p.dtype is torch.float32 else 1e-2, atol=1e-6)


def test_the_same_tensors_give_the_same_bits():
    params, memory = tensors(torch.float32, "delta")
    found = []
    for _ in range(5):
        passes = _passes.Passes(memory)
        passes.launch([params])
        found.append(passes.read())
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("layout", ["delta", "delta+ref"])
def test_a_restored_step_leaves_x_as_it_was(layout):
    params, memory = tensors(torch.float32, layout)
    before = [p.detach().clone() for p in params]
    passes = _passes.Passes(memory)
    passes.launch([params])
    with torch.no_grad():
        for p in params:
            p.add_(1.0)
    passes.restore()
    for p, q in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=0 if layout == "delta" else 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale_groups", ["all", "tensor"])
def test_a_training_on_the_gpu_finds_the_s_of_the_reference(dtype, scale_groups, monkeypatch):
    def scale(fused):
        if not fused:
            monkeypatch.setattr(_passes, "_kernels", lambda: None)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 10)).to("cuda", dtype)
        x = torch.randn(512, 64, device="cuda", dtype=dtype)
        y = torch.randint(0, 10, (512,), device="cuda")
        opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0, fused=True), scale_groups=scale_groups)
        for _ in range(40):  # before the training magnifies every rounding
            opt.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x).float(), y)
            loss.backward()
            opt.step()
        return loss.item(), opt.scales

    loss, S = scale(True)
    expected_loss, expected = scale(False)
    assert pytest.approx(expected, rel=1e-3 if dtype is torch.float32 else 0.2) == S
    assert loss == pytest.approx(expected_loss, rel=0.05, abs=0.02)


def test_parameters_of_other_kinds_go_by_the_reference_beside_the_kernels():
    """float64, an unaligned view and a transposed gradient, in one step with others."""
    whole = torch.randn(1001, device="cuda")
    odd = torch.nn.Parameter(whole[1:])
    double = torch.nn.Parameter(torch.randn(7, device="cuda", dtype=torch.float64))
    plain = torch.nn.Parameter(torch.randn(33, 17, device="cuda"))
    turned = torch.nn.Parameter(torch.randn(5, 6, device="cuda"))
    for p in (odd, double, plain, turned):
        p.grad = torch.randn_like(p)
    turned.grad = torch.randn(6, 5, device="cuda").t()
    params = [odd, double, plain, turned]
    memory = Memory()
    for p in params:
        memory.join(p, 0.0)
        memory.delta[p].normal_()
    passes = _passes.Passes(memory)
    passes.launch([params])
    (found,) = passes.read()
    flat = [(memory.delta[p].double().flatten(), p.grad.double().flatten(), p.double().flatten()) for p in params]
    D, g, x = (torch.cat(parts) for parts in zip(*flat, strict=True))
    assert found == pytest.approx([(D @ g).item(), (D @ x).item(), (g @ g).item(), (x @ x).item()], rel=1e-12)
    assert [id(p) for p in passes._plain[0]] == [id(p) for p in (odd, double, turned)]


@pytest.mark.parametrize("base", ["fused", "foreach"])
def test_a_step_with_a_nan_does_nothing_at_all(base):
    """A fused BASE runs before the scalars are known here, and is told on the device to do nothing."""
    p = torch.nn.Parameter(torch.randn(5000, device="cuda"))
    opt = mechanize(torch.optim.AdamW([p], lr=1.0, **{base: True}))
    for _ in range(5):
        p.grad = torch.randn_like(p)
        opt.step()
    before = p.detach().clone(), opt.scale, {key: value.clone() for key, value in opt.state[p].items()}
    p.grad = torch.randn_like(p)
    p.grad[17] = float("nan")
    opt.step()
    assert torch.equal(p.detach(), before[0])
    assert opt.scale == before[1]
    assert all(torch.equal(opt.state[p][key], value) for key, value in before[2].items())
    p.grad = torch.randn_like(p)
    opt.step()
    assert torch.isfinite(p).all()


def test_gradients_that_come_and_go_and_change_their_place():
    """zero_grad makes new gradients; one is missing now and then; one becomes a view that no kernel takes."""
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in (1000, 33, 70_000)]
        opt = mechanize(torch.optim.SGD(params, lr=1.0))
        opt._stepper.passes._fused = fused
        for step in range(30):
            for i, p in enumerate(params):
                g = torch.sin(p.detach() + i)
                p.grad = None if step % 7 == i else torch.cat([g, g])[1 : 1 + len(g)] if step % 5 == i else g
            opt.step()
        found.append((opt.scale, [p.detach().clone() for p in params]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for p, q in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", ["fused", "foreach"])
def test_under_a_grad_scaler_the_tuner_sees_unscaled_gradients_and_no_overflow(base):
    """In both forms of BASE; the reductions are those of a training without a scaler."""
    scales = []
    for enabled in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 8, device="cuda")
        opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0, **{base: True}), s_init=1e-3)
        scaler = torch.amp.GradScaler("cuda", enabled=enabled, init_scale=2.0**12)
        make = torch.Generator("cuda").manual_seed(1)
        for step in range(30):
            x = torch.randn(32, 64, generator=make, device="cuda")
            for factor in [float("inf"), 1.0] if enabled and step == 11 else [1.0]:
                opt.zero_grad()
                scaler.scale(model(x).square().mean() * factor).backward()
                before = [p.detach().clone() for p in model.parameters()]
                scaler.step(opt)
                scaler.update(2.0**12)
                if factor != 1.0:
                    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert opt.last_step == 30
        scales.append(opt.scale)
    assert scales[0] == pytest.approx(scales[1], rel=1e-3)
    assert scales[0] > 0


def test_layout_ref_goes_by_the_reference_and_keeps_one_slot():
    results = []
    for layout in ("ref", "delta"):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(1000, device="cuda", dtype=torch.float64))
        opt = mechanize(torch.optim.SGD([p], lr=1.0), delta_layout=layout, s_init=1e-3)
        for _ in range(20):
            p.grad = torch.sin(p.detach())
            opt.step()
        results.append(opt.scale)
        assert (len(opt._stepper.memory.delta), len(opt._stepper.memory.ref)) == ((0, 1) if layout == "ref" else (1, 0))
    assert results[0] == pytest.approx(results[1], rel=1e-9)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_step_inside_a_capture_is_refused():
    p = torch.nn.Parameter(torch.randn(1000, device="cuda"))
    p.grad = torch.randn_like(p)
    opt = mechanize(torch.optim.AdamW([p], lr=1.0, capturable=True))
    opt.step()
    with pytest.raises(InvalidArgument) as caught, torch.cuda.graph(torch.cuda.CUDAGraph()):
        opt.step()
    assert caught.value.reason == "CUDA_GRAPH_CAPTURE"
    opt.step()
    assert opt.last_step == 2


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("through_data", [True, False])
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, "delta"), (torch.float32, "delta+ref"), (torch.bfloat16, "delta"), (torch.float16, "delta")],
)
def test_an_outside_change_stays(dtype, layout, through_data, ahead):
    """The host sees what torch changes in place; what goes through `p.data`, only the kernels see."""
    p = torch.nn.Parameter(torch.randn(20_000, device="cuda").to(dtype))
    opt = mechanize(torch.optim.SGD([p], lr=1.0, fused=True), s_init=1e-3, delta_layout=layout, ahead=ahead)

    def step(factor):
        p.grad = factor * (p.detach() - 1)
        opt.step()

    for _ in range(60):
        step(1e-2)
    assert (opt._stepper.async_device is not None) == ahead
    opt.flush()
    memory = opt._stepper.memory
    refs, D, moved = (
        {q: ref.clone() for q, ref in memory.ref.items()},
        memory.delta[p].clone(),
        memory.placed[p] * memory.delta[p],
    )
    step(0.0)
    step(0.0)
    assert all(torch.equal(memory.ref[q], ref) for q, ref in refs.items()), "without a change x_ref stays to the last bit"
    with torch.no_grad():
        (p.data if through_data else p.detach())[5000:15_000].clamp_(-0.01, 0.01)
    there = p.detach().clone()
    for _ in range(3):
        step(0.0)
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(p.detach(), there, rtol=ulp, atol=ulp * moved.abs().max().item())
    torch.testing.assert_close(memory.delta[p], D, rtol=0, atol=1e-6 * D.abs().max().item())
    assert all(torch.equal(memory.ref[q][:4096].to(ref.dtype), ref[:4096]) for q, ref in refs.items()), "nor does the rest move"
    for _ in range(20):
        step(1e-2)
    assert not torch.equal(p.detach(), there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_follows_a_model_to_the_gpu_and_back(dtype):
    model = torch.nn.Linear(64, 8).to(dtype)
    opt = mechanize(torch.optim.SGD(model.parameters(), lr=1.0), s_init=1e-3)
    for device in ("cpu", "cuda", "cpu"):
        model.to(device)
        there = model.weight.detach().clone()
        for step in range(10):
            opt.zero_grad()
            loss = (model(torch.ones(4, 64, device=device, dtype=dtype)) - 1).pow(2).mean()
            (loss * bool(step)).backward()
            opt.step()
            if step == 0:
                torch.testing.assert_close(
                    model.weight.detach(), there, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-6
                )
        assert all(D.device.type == device for D in opt._stepper.memory.delta.values())
    assert opt.scale > 0
