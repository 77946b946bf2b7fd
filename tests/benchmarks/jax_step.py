"""What a mechanized step costs in JAX: against bare optax.adamw, and against optax.contrib.mechanize.

    python tests/benchmarks/jax_step.py [--sizes 3M 124M] [--dtypes float32 bfloat16] [--train] [--seconds S] [--json FILE]

On a GPU if there is one, else on the CPU (where the size is 20M). For each set of parameters, which are a GPT-2's in number and
shape, with fixed gradients, jitted and with all buffers donated, prints the time of a step:

    adamw           optax.adamw
    optax           optax.contrib.mechanize(optax.adamw)
    in-process      mechanize(optax.adamw(1.0))
    remote          the same with a server of its own, on this host, told by a callback within the program
    loop            the same, told by tx.report(state) after each step
    hold            the same where each step waits for the server's answer

`--train` adds whole training steps of a transformer language model of that size (random tokens).
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mechanicd.jax import mechanize

SIZES = {"3M": (4, 192, 6000), "20M": (8, 384, 14_000), "124M": (12, 768, 50_257), "1.1B": (20, 2048, 50_257)}
"""Layers, width and vocabulary."""
CONTEXT = 256


def shapes(size: str) -> dict[str, Any]:
    """A GPT-2's tensors."""
    layers, d, vocabulary = SIZES[size]
    names = ("ln1", "ln1b", "qkv", "qkvb", "out", "outb", "ln2", "ln2b", "up", "upb", "down", "downb")
    block = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    blocks = [dict(zip(names, block, strict=True)) for _ in range(layers)]
    return {"tokens": (vocabulary, d), "places": (1024, d), "blocks": blocks, "ln": (d,), "lnb": (d,)}


def make(size: str, dtype: Any, seed: int, scale: float) -> Any:
    """Random arrays of these shapes, made on the device."""
    leaves, tree = jax.tree.flatten(shapes(size), is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    arrays = [scale * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, leaves, strict=True)]
    return tree.unflatten(arrays)


def loss(params: Any, tokens: Any) -> Any:
    """Next-token loss of a GPT-2 in plain JAX."""

    def norm(x: Any, gain: Any, shift: Any) -> Any:
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * (1 + gain) + shift

    d = params["ln"].shape[0]
    heads = d // 64
    x = params["tokens"][tokens] + params["places"][: tokens.shape[1]]
    for p in params["blocks"]:
        qkv = norm(x, p["ln1"], p["ln1b"]) @ p["qkv"] + p["qkvb"]
        q, k, v = (part.reshape(*part.shape[:2], heads, 64) for part in jnp.split(qkv, 3, -1))
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ p["out"] + p["outb"]
        x = x + jax.nn.gelu(norm(x, p["ln2"], p["ln2b"]) @ p["up"] + p["upb"]) @ p["down"] + p["downb"]
    logits = norm(x, params["ln"], params["lnb"]) @ params["tokens"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1].astype(jnp.float32), tokens[:, 1:]).mean()


def seconds(step: Callable[..., Any], carry: Any, least: float) -> tuple[float, Any]:
    """Of one step: the best of three rounds, each of as many steps as take `least` seconds."""
    for _ in range(3):
        carry = step(*carry)
    jax.block_until_ready(carry)
    best, steps = math.inf, 5
    for _ in range(4):
        begin = time.perf_counter()
        for _ in range(steps):
            carry = step(*carry)
        jax.block_until_ready(carry)
        best = min(best, (time.perf_counter() - begin) / steps)
        steps = max(5, int(least / best))
    return best, carry


@contextmanager
def running_server() -> Iterator[str]:
    """The address of a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", "127.0.0.1:0"]
        command += ["--http", "off", "--store", f"sqlite:///{folder}/db"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        ready = process.stdout.readline()
        try:
            yield ready.split("grpc=")[1].split()[0]
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


def optimizers(target: str) -> dict[str, Callable[[str], Any]]:
    return {
        "adamw": lambda _: optax.adamw(1e-4),
        "optax": lambda _: optax.contrib.mechanize(optax.adamw(1.0)),
        "in-process": lambda _: mechanize(optax.adamw(1.0)),
        "remote": lambda name: mechanize(optax.adamw(1.0), f"{name}/remote", target),
        "loop": lambda name: mechanize(optax.adamw(1.0), f"{name}/loop", target, report="loop"),
        "hold": lambda name: mechanize(optax.adamw(1.0), f"{name}/hold", target, on_outage="hold"),
    }


def measure(size: str, dtype: str, train: bool, least: float, target: str) -> dict[str, float]:
    """Milliseconds of a step with each optimizer."""
    times = {}
    fixed = make(size, dtype, 1, 1e-2) if not train else None
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, SIZES[size][2], (8, CONTEXT)), jnp.int32)
    for name, build in optimizers(target).items():
        tx = build(f"{size}-{dtype}{'-train' if train else ''}")

        def step(params: Any, state: Any, grads: Any, tx: Any = tx) -> Any:
            if grads is None:
                grads = jax.grad(loss)(params, tokens)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1))
        params = make(size, dtype, 0, 2e-2)
        carry: Any = (params, jax.jit(tx.init)(params))
        try:

            def told(*pair: Any, step: Any = jitted, tx: Any = tx, loop: bool = name == "loop") -> Any:
                params, state = step(*pair, fixed)
                if loop:
                    tx.report(state)
                return params, state

            times[name], carry = seconds(told, carry, least)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            times[name] = math.nan
        if hasattr(tx, "close"):
            tx.close()
        del carry, params
    return {name: 1e3 * value for name, value in times.items()}


def main() -> None:
    gpu = jax.default_backend() == "gpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["3M", "124M"] if gpu else ["20M"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"] if gpu else ["float32"])
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; milliseconds a step; the last three columns are ratios")
    heads = ("adamw", "optax", "in-proc.", "remote", "loop", "hold")
    print(f"{'':22}" + "".join(f"{head:>9}" for head in heads) + f"{'in-process/optax':>18}{'remote, loop/in-process':>25}")
    with running_server() as target:
        for size in arguments.sizes:
            for dtype in arguments.dtypes:
                for train in (False, True) if arguments.train else (False,):
                    times = measure(size, dtype, train, arguments.seconds, target)
                    label = f"{size} {dtype}{' train' if train else ''}"
                    rows.append({"size": size, "dtype": dtype, "train": train, "milliseconds": times})
                    ratios = [times["in-process"] / times["optax"]]
                    ratios += [times[name] / times["in-process"] for name in ("remote", "loop")]
                    print(
                        f"{label:22}"
                        + "".join(f"{value:9.2f}" for value in times.values())
                        + f"{ratios[0]:18.2f}{ratios[1]:17.3f}{ratios[2]:8.3f}",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": jax.devices()[0].device_kind, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
