"""Trains as a user does, in a process that looks like one on another system.

    python -m tests.client.programs.train_elsewhere win32|darwin TARGET client|torch|jax …

Prints, for the client alone, for PyTorch or for JAX, S without a server and with it.
"""

import importlib
import signal
import sys
from typing import Any

from tests.client.programs import elsewhere


def with_client(target: str | None, run: str) -> float:
    from mechanicd.client import LocalSession, Reductions, TunerConfig, open_run

    session = open_run(target, run, start=0) if target else LocalSession(TunerConfig(), None)
    for step in range(1, 21):
        S = session.step(Reductions(-1.0 / step, 0.0, 1.0, 4.0))
    session.flush()
    session.close()
    return S


def with_torch(target: str | None, run: str) -> float:
    import torch

    from mechanicd.torch import mechanize

    class Base(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            if opt.last_step % 10 == 5:
                signal.raise_signal(signal.SIGINT)
            return super().step(closure)

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    saved: Any = None
    for _ in range(2):  # the second half goes on from a checkpoint
        opt = mechanize(Base(model.parameters(), lr=1.0), run, target)
        if saved:
            opt.load_state_dict(saved)
        for step in range(10):
            opt.zero_grad()
            (model(torch.ones(8, 4)) - 1).square().mean().backward()
            try:
                opt.step()
            except KeyboardInterrupt:
                assert (step, opt.last_step % 10) == (5, 6), "a signal in a step comes at its end"
            else:
                assert step != 5
        saved, S = opt.state_dict(), opt.scale
        opt.close()
    return S


def with_jax(target: str | None, run: str) -> float:
    import jax
    import jax.numpy as jnp
    import optax

    from mechanicd.jax import mechanize, scale

    tx = mechanize(optax.adam(1.0), run, target)
    params: Any = {"w": jnp.ones((4, 2))}
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.grad(lambda p: ((jnp.ones((8, 4)) @ p["w"] - 1) ** 2).mean())(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(20):
        params, state = step(params, state)
    S = scale(state)
    tx.flush()
    tx.close()
    return S


PACKAGES = {"client": (), "torch": ("torch",), "jax": ("jax", "optax")}
FRAMEWORKS = {"client": with_client, "torch": with_torch, "jax": with_jax}


def train(framework: str, target: str | None, run: str) -> str:
    """S at the end, as hexadecimal digits."""
    return FRAMEWORKS[framework](target, run).hex()


if __name__ == "__main__":
    platform, target, *frameworks = sys.argv[1:]
    for package in ("urllib.request", "grpc", *(package for name in frameworks for package in PACKAGES[name])):
        importlib.import_module(package)  # those of others come first: the ones here are made for this system
    elsewhere.become(platform)
    for framework in frameworks:
        print(framework, train(framework, None, ""), train(framework, target, f"{platform}/{framework}"))
