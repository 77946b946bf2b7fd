"""A task with its data: the loss of each step's batch, and the model's score on held-out data.

A batch is a pure function of (seed, step), so a resumed training meets the very same ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments import _models
from experiments._catalogue import Task
from experiments._data import Arrays

_SETTLE: Final = 50  # batches
_TOGETHER: Final = 256  # examples at a time where no gradient is needed
_PIXELS: Final = 2  # by which MNIST's pictures are moved at most; without it a model soon knows them by heart

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Score:
    """The score of a model on held-out data.

    Attributes:
        loss: the mean, in nats.
        right: which of the targets it names, in order.
    """

    loss: float
    right: NDArray[np.bool_]

    @property
    def count(self) -> int:
        return len(self.right)

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100.0 * float(self.right.mean())


class Problem:
    """Data on a device, and a model.

    Args:
        task: what to make.
        arrays: its prepared set.
        pretrained: gives MiniLM's weights.
        seed: of the model's start and of the order of the batches.
        device: "cpu" or "cuda".
    """

    def __init__(self, task: Task, arrays: Arrays, pretrained: Callable[[], Arrays], seed: int, device: str) -> None:
        torch.manual_seed(seed)
        self.model = _models.build(task, arrays, pretrained).to(device)
        self._task = task
        self._seed = seed
        self._device = device
        self._tensors = {name: torch.from_numpy(_widened(values)).to(device) for name, values in arrays.items()}
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def loss(self, step: int) -> Tensor:
        """The mean loss of a step's batch; steps are counted from 1."""
        logits, targets = self._answer(*self._batch(step))
        return nn.functional.cross_entropy(logits, targets, ignore_index=self._ignored)

    @torch.no_grad()
    def settle(self) -> None:
        """Updates the statistics of batch norms for parameters that were not trained on, with some batches."""
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules()):
            for step in range(1, _SETTLE + 1):
                self.loss(step)

    @torch.no_grad()
    def evaluate(self, part: str, most: int) -> Score:
        """The model's score on up to `most` examples of "val" or "test"."""
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        right = []
        for pair in self._examples(part, most):
            logits, targets = self._answer(*pair)
            loss += nn.functional.cross_entropy(logits, targets, ignore_index=self._ignored, reduction="sum")
            right.append((logits.argmax(dim=-1) == targets)[targets != self._ignored])
        self.model.train()
        named = torch.cat(right).cpu().numpy()
        return Score(float(loss) / len(named), named)

    _ignored = -100

    def _answer(self, x: Tensor, y: Tensor) -> Pair:
        """Logits and targets, one row each."""
        return self.model(x), y

    def _batch(self, step: int) -> Pair:
        """Each epoch shuffles all examples anew."""
        x, y = self._tensors["x_train"], self._tensors["y_train"]
        size = min(self._task.batch, len(y))
        epoch, place = divmod(step - 1, len(y) // size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, 0, epoch)).permutation(len(y))
        chosen = torch.from_numpy(self._order[place * size : (place + 1) * size]).to(self._device)
        return x[chosen], y[chosen]

    def _examples(self, part: str, most: int) -> Iterator[Pair]:
        x, y = self._tensors[f"x_{part}"][:most], self._tensors[f"y_{part}"][:most]
        return zip(x.split(_TOGETHER), y.split(_TOGETHER), strict=True)


class Shifted(Problem):
    """Images, shifted a little at random in each batch."""

    def _batch(self, step: int) -> Pair:
        x, y = super()._batch(step)
        height, width = x.shape[1:]
        moves = np.random.default_rng((self._seed, 1, step)).integers(0, 2 * _PIXELS + 1, (2, len(y), 1))
        down, right = torch.from_numpy(moves).to(self._device)
        black = float(self._tensors["x_train"].min())
        padded = nn.functional.pad(x, (_PIXELS,) * 4, value=black)
        rows = (down + torch.arange(height, device=self._device))[:, :, None]
        columns = (right + torch.arange(width, device=self._device))[:, None, :]
        return padded[torch.arange(len(y), device=self._device)[:, None, None], rows, columns], y


class Language(Problem):
    """Windows of a stream of tokens; each token is predicted from those before it."""

    def _answer(self, x: Tensor, y: Tensor) -> Pair:
        return self.model(x).flatten(0, 1), y.flatten()

    def _batch(self, step: int) -> Pair:
        stream = self._tensors["train"]
        last = len(stream) - _models.CONTEXT - 1
        starts = np.random.default_rng((self._seed, 0, step)).integers(0, last, (self._task.batch, 1))
        windows = stream[torch.from_numpy(starts).to(self._device) + torch.arange(_models.CONTEXT + 1, device=self._device)]
        return windows[:, :-1], windows[:, 1:]

    def _examples(self, part: str, most: int) -> Iterator[Pair]:
        stream = self._tensors[part]
        windows = stream.unfold(0, _models.CONTEXT + 1, _models.CONTEXT)[:most]
        return ((some[:, :-1], some[:, 1:]) for some in windows.split(_TOGETHER))


class Translation(Problem):
    """Verses; each Spanish token is predicted from the English verse and the tokens before it."""

    _ignored = 0

    def _answer(self, x: Tensor, y: Tensor) -> Pair:
        return self.model(x, y[:, :-1]).flatten(0, 1), y[:, 1:].flatten()


def _widened(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Converts bytes to numbers from −1 to 1 and tokens to indices; everything else is unchanged."""
    if values.dtype == np.uint8:
        return values.astype(np.float32) / 127.5 - 1.0
    return values.astype(np.int64) if values.dtype == np.uint16 else values


_KINDS: Final = {"language": Language, "translation": Translation}


def pose(task: Task, arrays: Arrays, pretrained: Callable[[], Arrays], seed: int, device: str) -> Problem:
    """The problem of a task."""
    kind = Shifted if task.data == "mnist" else _KINDS.get(task.family, Problem)
    return kind(task, arrays, pretrained, seed, device)
