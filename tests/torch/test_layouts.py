"""What is kept beside x: the layouts train alike, low precision really trains, and the way back is exact."""

import pytest
import torch

from mechanicd.torch import mechanize

BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=1.0),
    "momentum": lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1.0),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1.0),
}


def regression(dtype=torch.float32):
    """A model of one wide and one narrow layer, and a loss that falls where it is trained."""
    make = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=make) * 0.3)
    model.to(dtype)
    x = torch.randn(256, 8, generator=make)
    y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2]
    return model, x.to(dtype), y.to(dtype)


def train(model, x, y, opt, steps):
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("base", BASES)
def test_both_layouts_give_the_same_training(base):
    """Over the steps before S has grown so far that the training magnifies every rounding."""
    found = []
    for layout in ("delta", "delta+ref"):
        model, x, y = regression(torch.float64)
        opt = mechanize(BASES[base](model.parameters()), delta_layout=layout)
        losses = train(model, x, y, opt, 60)
        found.append((losses, opt.scale, [p.detach().clone() for p in model.parameters()]))
    (losses, S, params), (other_losses, other_S, others) = found
    assert other_S == pytest.approx(S, rel=1e-8)
    assert other_losses == pytest.approx(losses, rel=1e-8)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("base", "dtype"),
    [*((base, torch.bfloat16) for base in BASES), ("sgd", torch.float16), ("momentum", torch.float16)],  # its squares underflow
)
def test_low_precision_trains_as_float32_does(base, dtype):
    """Without a master copy the moves of a small S are lost, and the loss stays where it was."""
    exact, rough = regression(), regression(dtype)
    losses = train(*exact, mechanize(BASES[base](exact[0].parameters())), 600)
    low = train(*rough, mechanize(BASES[base](rough[0].parameters())), 600)
    assert losses[-1] < 0.5 * losses[0], "the problem can be learned"
    assert low[-1] < 0.6 * low[0]
    assert low[-1] < losses[-1] + 0.15 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moves_smaller_than_an_ulp_of_x_add_up(dtype):
    """Each update is large, as those of an lr of 1 are, and S makes the move small."""
    p = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    opt = mechanize(torch.optim.SGD([p], lr=1.0), s_init=1e-6)
    for _ in range(300):
        p.grad = torch.full_like(p, 0.1)
        opt.step()
    memory = opt._stepper.memory
    exact = memory.ref[p].double() + memory.placed[p] * memory.delta[p].double()
    assert (exact < 1.0).all()
    assert torch.equal(p.detach(), exact.float().to(dtype))
    assert (p < 1.0).all(), "the moves are there"


@pytest.mark.parametrize(
    ("layout", "dtype"), [("delta+ref", torch.float32), ("delta+ref", torch.float64), ("delta", torch.bfloat16)]
)
def test_with_x_ref_x_is_x_ref_plus_s_delta_to_the_last_bit(layout, dtype):
    model, x, y = regression(dtype)
    start = [p.detach().clone() for p in model.parameters()]
    opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0), delta_layout=layout)
    train(model, x, y, opt, 50)
    memory = opt._stepper.memory
    for p, before in zip(model.parameters(), start, strict=True):
        assert torch.equal(memory.ref[p], before)
        D = memory.delta[p]
        assert torch.equal(p.detach(), torch.add(memory.ref[p].to(D.dtype), D, alpha=memory.placed[p]).to(dtype))


@pytest.mark.parametrize(
    ("layout", "dtype"), [("delta", torch.float32), ("delta+ref", torch.float32), ("delta", torch.bfloat16)]
)
def test_a_base_that_fails_leaves_x_as_it_was(layout, dtype):
    model, x, y = regression(dtype)
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    opt = mechanize(base, delta_layout=layout)
    train(model, x, y, opt, 20)
    before = [p.detach().clone() for p in model.parameters()]
    step = base.step

    def fails(*arguments):
        step(*arguments)
        raise RuntimeError("out of memory")

    base.step = fails
    with pytest.raises(RuntimeError, match="out of memory"):
        train(model, x, y, opt, 1)
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.detach(), q)


@pytest.mark.parametrize(("there", "here"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_a_checkpoint_goes_on_in_another_dtype(there, here):
    model, x, y = regression(there)
    opt = mechanize(torch.optim.SGD(model.parameters(), lr=1.0))
    first = train(model, x, y, opt, 300)
    saved = opt.state_dict()
    other, x, y = regression(here)
    other.load_state_dict(model.state_dict())
    resumed = mechanize(torch.optim.SGD(other.parameters(), lr=1.0))
    resumed.load_state_dict(saved)
    second = train(other, x, y, resumed, 300)
    assert second[0] == pytest.approx(first[-1], rel=0.1, abs=0.02)
    assert second[-1] <= second[0] * 1.02
