"""One training, from its start or its checkpoint to its result."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn

from experiments import _arms, _models
from experiments._arms import Tuned, Where
from experiments._catalogue import Training, schedule
from experiments._problems import Problem, Score, pose
from experiments._results import encode
from mechanicd.torch import Mechanized

POINTS: Final = 32  # of a curve
_LAST: Final = 0.05  # of the steps, whose mean is the final training loss
_CHECKPOINT_SECONDS: Final = 30.0

Result = dict[str, Any]
Loader = Callable[[str], dict[str, Any]]


def train(
    training: Training, load: Loader, device: str, where: Where, checkpoint: Path, stop: Callable[[], bool]
) -> Result | None:
    """Trains, from the checkpoint if there is one.

    Args:
        training: what to train.
        load: returns a prepared set.
        device: "cpu" or "cuda".
        where: the server.
        checkpoint: kept while it trains, removed at its end.
        stop: asked after each step.

    Returns:
        The result, or None if it was stopped. "seconds" is the time of the steps; "wall" includes the start and the evaluation.
    """
    began, task = time.monotonic(), training.row.task
    problem = pose(task, load(task.data), lambda: load("minilm"), training.seed, device)
    tuned = _arms.equip(training, problem.model, where)
    course = _Course(training, problem, tuned, checkpoint)
    try:
        finished = course.run(stop)
        result = {**course.result(), "wall": round(time.monotonic() - began, 3)} if finished else None
    except BaseException as error:
        _close(tuned, "failed", f"{type(error).__name__}: {error}")
        raise
    if finished:
        _close(tuned, "finished")
        checkpoint.unlink(missing_ok=True)
    else:
        _close(tuned, "preempted", "the runner was interrupted")
    return result


def _close(tuned: Tuned, status: str, message: str = "") -> None:
    if isinstance(tuned.optimizer, Mechanized):
        tuned.optimizer.close(status, message)


class _Course:
    """A training after some number of steps."""

    def __init__(self, training: Training, problem: Problem, tuned: Tuned, checkpoint: Path) -> None:
        self._training = training
        self._problem = problem
        self._tuned = tuned
        self._checkpoint = checkpoint
        self._steps = training.row.task.steps
        self._every = max(1, self._steps // POINTS)
        self._done = 0
        self._losses: list[Tensor] = []
        self._scales: list[tuple[int, tuple[float, ...]]] = []
        self._seconds = 0.0
        self._diverged = False
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            tuned.optimizer, lambda step: schedule(step, self._steps) if tuned.scheduled else 1.0
        )
        if checkpoint.exists() and tuned.resumable:
            self._restore()

    def run(self, stop: Callable[[], bool]) -> bool:
        """Steps to the end. Returns whether it got there."""
        began = saved = time.monotonic()
        _arms.averaged(self._tuned.optimizer, on=False)
        while self._done < self._steps and not self._diverged:
            self._step()
            now = time.monotonic()
            if stop():
                self._seconds += now - began
                self._save()
                return False
            if now - saved > _CHECKPOINT_SECONDS:
                saved = now
                self._save(self._seconds + now - began)
        self._seconds += time.monotonic() - began
        return True

    def result(self) -> Result:
        """The result, ready for JSON: non-finite numbers become null."""
        if _arms.averaged(self._tuned.optimizer, on=True):
            self._problem.settle()
        losses = torch.stack(self._losses).double().cpu()
        scales = self._tuned.scale()
        task = self._training.row.task
        scores = {part: self._problem.evaluate(part, task.evaluated) for part in ("val", "test")}
        return {
            "diverged": self._diverged or not math.isfinite(scores["test"].loss),
            **{part: _score(score) for part, score in scores.items()},
            **({"right": encode(scores["test"].right)} if task.metric == "accuracy" else {}),
            "train_loss": _number(float(losses[-max(1, round(_LAST * self._steps)) :].mean())),
            "scale": _number(median(scales)),
            **({"scales": [_number(scale) for scale in scales]} if len(scales) > 1 else {}),
            "curve": [
                [step, _number(median(scale)), _number(float(losses[max(0, step - self._every) : step].mean()))]
                for step, scale in self._scales
            ],
            "parameters": _models.count(self._problem.model),
            "seconds": round(self._seconds, 3),
        }

    def _step(self) -> None:
        self._tuned.optimizer.zero_grad()
        loss = self._problem.loss(self._done + 1)
        loss.backward()
        if clip := self._training.row.task.clip:
            nn.utils.clip_grad_norm_(self._problem.model.parameters(), clip)
        self._tuned.optimizer.step()
        self._scheduler.step()
        self._done += 1
        self._losses.append(loss.detach())
        if self._done % self._every == 0:
            self._scales.append((self._done, self._tuned.scale()))
            self._diverged = not bool(torch.isfinite(torch.stack(self._losses[-self._every :])).any())

    def _save(self, seconds: float | None = None) -> None:
        """Writes a checkpoint atomically. Methods that can't be restored exactly have none and start over."""
        if not self._tuned.resumable:
            return
        state = {
            "spec": self._training.spec,
            "done": self._done,
            "seconds": self._seconds if seconds is None else seconds,
            "losses": torch.stack(self._losses),
            "scales": self._scales,
            "model": self._problem.model.state_dict(),
            "optimizer": self._tuned.optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        }
        unfinished = self._checkpoint.with_suffix(".unfinished")
        torch.save(state, unfinished)
        os.replace(unfinished, self._checkpoint)

    def _restore(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        if state["spec"] != self._training.spec:
            return  # of another version of the list
        self._done = state["done"]
        self._seconds = state["seconds"]
        self._losses = list(state["losses"])
        self._scales = [(step, tuple(scales)) for step, scales in state["scales"]]
        self._problem.model.load_state_dict(state["model"])
        self._tuned.optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"].cpu())
        if state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"].cpu())


def _score(score: Score) -> dict[str, float | int | None]:
    return {"loss": _number(score.loss), "accuracy": _number(score.accuracy), "count": score.count}


def _number(value: float) -> float | None:
    """The number with six digits, or None if JSON can't represent it."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
