"""The two passes over the parameters, each against the formula it stands for."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from mechanicd.torch import _reference


def tensors(shapes, dtype=torch.float32, seed=0):
    make = torch.Generator().manual_seed(seed)
    params, delta = [], {}
    for shape in shapes:
        p = torch.nn.Parameter(torch.randn(shape, generator=make, dtype=torch.float64).to(dtype))
        p.grad = torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)
        D = _reference.new_delta(p)
        delta[p] = D.copy_(torch.randn(shape, generator=make, dtype=torch.float64))
        params.append(p)
    return params, delta


def plain_reductions(params, delta):
    D, g, x = (
        np.concatenate([[0.0], *(t.detach().double().numpy().ravel() for t in parts)])
        for parts in zip(*((delta[p], p.grad, p) for p in params), strict=True)
    )
    return D @ g, D @ x, g @ g, x @ x


@hypothesis.given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 100),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_reduce_is_four_dot_products_in_float64(shapes, dtype, chunk, seed):
    """Whatever the shapes, also empty and 0-d ones, and however they fall into chunks."""
    params, delta = tensors(shapes, dtype, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_reference, "CHUNK", chunk)
        (found,) = _reference.reduce([params], delta)
    assert found == pytest.approx(plain_reductions(params, delta), rel=1e-13, abs=1e-13)


def test_reduce_gives_each_group_its_own_and_nothing_to_an_empty_one():
    params, delta = tensors([(3,), (4, 5), (2,)])
    found = _reference.reduce([params[:1], [], params[1:]], delta)
    assert found[0] == pytest.approx(plain_reductions(params[:1], delta), rel=1e-14)
    assert found[1] == (0.0, 0.0, 0.0, 0.0)
    assert found[2] == pytest.approx(plain_reductions(params[1:], delta), rel=1e-14)


def test_reduce_takes_any_memory_layout():
    (p,), _ = tensors([(2, 3, 4, 5)])
    p.data = p.data.to(memory_format=torch.channels_last)
    D = _reference.new_delta(p)
    assert D.stride() == p.stride()
    delta = {p: D.copy_(torch.arange(120.0).reshape(2, 3, 4, 5))}
    p.grad = p.grad.transpose(2, 3).contiguous().transpose(2, 3)
    (found,) = _reference.reduce([[p]], delta)
    assert found == pytest.approx(plain_reductions([p], delta), rel=1e-13)


def test_reduce_neither_overflows_nor_underflows_where_float64_does_not():
    p = torch.nn.Parameter(torch.tensor([1e30, -1e30]))
    p.grad = torch.tensor([1e-30, 1e-30])
    (found,) = _reference.reduce([[p]], {p: torch.tensor([1e30, 1e30])})
    assert found.is_finite()
    assert found == pytest.approx((2.0, 0.0, 2e-60, 2e60), rel=1e-6)


def test_reduce_gives_the_same_bits_again():
    params, delta = tensors([(300, 41), (70_001,)], torch.float64)
    assert _reference.reduce([params], delta) == _reference.reduce([params], delta)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_apply_is_the_formula(dtype, tolerance):
    """Each parameter with its own S before and after; the update is read off what BASE left."""
    params, delta = tensors([(3, 4), (), (7,)], dtype)
    saved = _reference.save(params)
    with torch.no_grad():
        for p in params:
            p.sub_(p.grad)
    before, after = [0.5, 0.0, 2.0], [0.75, 1.5, 2.0]
    expected_delta, expected = [], []
    for p, x, S, S_next in zip(params, saved, before, after, strict=True):
        D = delta[p].double()
        D_next = D + (p.detach().double() - x.double())
        expected_delta.append(D_next)
        expected.append(x.double() - S * D + S_next * D_next)
    _reference.apply(params, saved, list(delta.values()), before, after)
    for p, D_next, x_next in zip(params, expected_delta, expected, strict=True):
        torch.testing.assert_close(delta[p].double(), D_next, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(p.detach().double(), x_next, rtol=tolerance, atol=4 * tolerance)


def test_restore_brings_back_every_bit():
    params, _ = tensors([(3, 4), (), (7,)])
    saved = _reference.save(params)
    with torch.no_grad():
        for p in params:
            p.mul_(3.7)
    _reference.restore(params, saved)
    assert all(torch.equal(p, x) for p, x in zip(params, saved, strict=True))


def test_reduce_takes_at_most_a_chunk_at_a_time(monkeypatch):
    """Its float64 copies stay small, however large a tensor is, and small tensors go together."""
    params, delta = tensors([(3,), (4,), (5,), (23,), ()])
    batches = list(_reference._batches(params, delta, 10))
    assert [[len(x) for _, _, x in batch] for batch in batches] == [[3, 4], [5], [10], [10], [3, 1]]
