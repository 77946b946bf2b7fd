"""A small transformer language model in Flax on Jane Austen's novels: AdamW or Lion, S from a server, resumed after SIGKILL.

    mechanicd serve &
    python clients/examples/language_flax.py --target 127.0.0.1:50051 --checkpoint austen.msgpack

Kill it at any moment and start it again: it resumes from the checkpoint, and so does its run on the server.
Needs `pip install 'mechanicd[jax]' flax`. `--text FILE` trains on your own text; without it, the script reads Debian's
r-cran-janeaustenr (`pip install 'mechanicd[experiments]'`).
"""

import argparse
import os
from pathlib import Path

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mechanicd.jax import mechanize, scale

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--target", default=os.environ.get("MECHANICD_TARGET"), help="the server; default: no server")
parser.add_argument("--run", default="austen/seed0")
parser.add_argument("--base", choices=["adamw", "lion"], default="adamw")
parser.add_argument("--text", type=Path, help="a UTF-8 text to train on; default: Jane Austen's six novels")
parser.add_argument("--checkpoint", type=Path, default=Path("austen.msgpack"))
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
args = parser.parse_args()

WIDTH, DEPTH, HEADS, CONTEXT, BATCH = 64, 2, 4, 64, 16


def read() -> bytes:
    if args.text is not None:
        return args.text.read_bytes()
    from experiments.texts import austen

    return "\n".join(austen()).encode()


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        causal = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x), mask=causal)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))


class Language(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(256, WIDTH)(tokens) + nn.Embed(CONTEXT, WIDTH)(jnp.arange(tokens.shape[1]))
        for _ in range(DEPTH):
            x = Block()(x)
        return nn.Dense(256)(nn.LayerNorm()(x))


text = np.frombuffer(read(), np.uint8)
train, test = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def batch(step: int, of: np.ndarray = train, size: int = BATCH) -> np.ndarray:
    """Bytes at random places, int32 (size, CONTEXT + 1); the same for the same step."""
    starts = np.random.default_rng(step).integers(0, len(of) - CONTEXT - 1, size)
    return of[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)


model = Language()
BASES = {"adamw": optax.adamw, "lion": optax.lion}

# The only lines that know of MECHANIC: a learning rate of 1.0 (times a schedule), and mechanize around the optimizer.
base = BASES[args.base](optax.cosine_decay_schedule(1.0, args.steps, alpha=0.1), weight_decay=0.0)
tx = mechanize(base, run=args.run, target=args.target, labels={"model": "transformer", "base": args.base})


def loss(params, rows):
    logits = model.apply(params, rows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


@jax.jit
def step(params, state, rows):
    value, grads = jax.value_and_grad(loss)(params, rows)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, CONTEXT), jnp.int32))
state, begin = jax.jit(tx.init)(params), 0
if args.checkpoint.exists():
    params, state, begin = flax.serialization.from_bytes((params, state, begin), args.checkpoint.read_bytes())
    print(f"resumed after step {begin}, S {scale(state):.2e}")

measure = jax.jit(loss)
held_out = batch(0, test, 128)
for t in range(begin, args.steps):
    params, state, value = step(params, state, batch(t))
    if (t + 1) % args.every == 0 or t + 1 == args.steps:
        bits = float(measure(params, held_out)) / np.log(2.0)
        print(f"step {t + 1:5d}  loss {value:.4f}  test {bits:.3f} bits per byte  S {scale(state):.2e}", flush=True)
        fresh = args.checkpoint.with_suffix(".new")
        fresh.write_bytes(flax.serialization.to_bytes((params, state, t + 1)))
        os.replace(fresh, args.checkpoint)
tx.close()
