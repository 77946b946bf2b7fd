"""One process of the demo: `python -m mechanicd.demo.train`.

With --checkpoint it trains once, mechanized, and resumes from the checkpoint if there is one. With --lr it trains without
MECHANIC, at each learning rate in turn. It reports on standard output, one JSON object per line (see `_reports`).
"""

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from torch import Tensor, nn

from mechanicd.demo import _data, _reports
from mechanicd.demo._bases import BASES
from mechanicd.demo._fleet import PROJECT, Recipe, schedule
from mechanicd.demo.models import MODELS
from mechanicd.torch import mechanize


class Training:
    """A model, its optimizer and its schedule, after some number of steps."""

    def __init__(self, recipe: Recipe, digits: _data.Digits) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.model = MODELS[recipe.model]()
        self.batches = _data.Batches(digits.train_images, digits.train_labels, size=recipe.batch, seed=recipe.seed)
        self.test_images = torch.from_numpy(_data.normalized(digits.test_images))
        self.test_labels = torch.from_numpy(digits.test_labels)
        self.done = 0

    def base(self, lr: float) -> torch.optim.Optimizer:
        """BASE over the model's parameters."""
        return BASES[self.recipe.base](self.model.parameters(), lr)

    def use(self, optimizer: torch.optim.Optimizer) -> None:
        """Trains with this optimizer, its learning rate times the schedule."""
        steps = self.recipe.steps
        self.optimizer = optimizer
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))

    def step(self) -> Tensor:
        """Takes one step; returns the loss of its batch."""
        images, labels = (torch.from_numpy(array) for array in self.batches[self.done + 1])
        self.optimizer.zero_grad()
        loss: Tensor = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of the 1,000 test digits that the model classifies correctly, in percent."""
        named = self.model(self.test_images).argmax(dim=1)
        return 100.0 * int((named == self.test_labels).sum()) / len(self.test_labels)

    def save(self, path: Path) -> None:
        """Writes a checkpoint atomically."""
        unfinished = path.with_suffix(".unfinished")
        state = {
            "done": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        torch.save(state, unfinished)
        os.replace(unfinished, path)

    def restore(self, path: Path) -> None:
        """Restores what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.done = state["done"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def train_mechanized(recipe: Recipe, digits: _data.Digits, options: argparse.Namespace) -> None:
    """Trains with BASE at lr=1.0 times the schedule; MECHANIC finds the scale."""
    training = Training(recipe, digits)
    optimizer = mechanize(training.base(lr=1.0), run=recipe.run, target=options.target, project=PROJECT, labels=recipe.labels)
    try:
        training.use(optimizer)
        if options.checkpoint.exists():
            training.restore(options.checkpoint)
        _reports.write(_reports.Started(training.done))
        began, accuracy = time.monotonic(), math.nan
        while training.done < recipe.steps:
            loss = training.step()
            if training.done % options.checkpoint_every == 0:
                training.save(options.checkpoint)
                accuracy = training.accuracy()
            if training.done % options.report_every == 0:
                _reports.write(_reports.Stepped(training.done, loss.item(), optimizer.scale, accuracy))
        seconds = time.monotonic() - began
        _reports.write(_reports.Finished(None, training.accuracy(), loss.item(), optimizer.scale, seconds))
    except BaseException as error:
        optimizer.close("preempted" if isinstance(error, SystemExit) else "failed", f"{type(error).__name__}: {error}")
        raise
    optimizer.close()


def train_bare(recipe: Recipe, digits: _data.Digits, lr: float) -> None:
    """Trains with BASE alone."""
    training = Training(recipe, digits)
    training.use(training.base(lr))
    began = time.monotonic()
    while training.done < recipe.steps:
        loss = training.step()
    seconds = time.monotonic() - began
    _reports.write(_reports.Finished(lr, training.accuracy(), loss.item(), lr, seconds))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mechanicd.demo.train", description=__doc__)
    parser.add_argument("--digits", type=Path, required=True, help="the file of the digits, written by the demo")
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--base", choices=sorted(BASES), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, action="append", help="train without MECHANIC at this rate; may be repeated")
    parser.add_argument("--target", help="the server; without it the tuner runs in this process")
    parser.add_argument("--checkpoint", type=Path, help="train mechanized, and keep a checkpoint here")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--report-every", type=int, default=10, metavar="STEPS")
    options = parser.parse_args(arguments)
    if (options.lr is None) == (options.checkpoint is None):
        parser.error("give either --lr, to train without MECHANIC, or --checkpoint, to train with it")

    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _stop)
    recipe = Recipe(options.model, options.base, options.batch, options.steps, options.seed)
    digits = _data.load(options.digits)
    if options.checkpoint is not None:
        train_mechanized(recipe, digits, options)
    for lr in options.lr or ():
        train_bare(recipe, digits, lr)


def _stop(signum: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
