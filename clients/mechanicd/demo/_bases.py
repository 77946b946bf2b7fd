"""The BASE optimizers of the demo, with the settings that mechanized and plain training share."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mechanicd.demo.lion import Lion

Base = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]


def adamw(params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=lr, weight_decay=0.01)


def sgd(params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def lion(params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return Lion(params, lr=lr, weight_decay=0.01)


BASES: dict[str, Base] = {"adamw": adamw, "sgd": sgd, "lion": lion}
