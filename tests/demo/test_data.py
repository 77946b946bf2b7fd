"""The data is real, split fairly, and the same whenever it is asked for."""

from pathlib import Path

import numpy as np
import pytest

from mechanicd.demo import _data


@pytest.fixture(scope="module")
def digits() -> _data.Digits:
    return _data.read()


def test_there_are_5000_real_digits_500_of_each_class(digits: _data.Digits):
    assert digits.train_images.shape == (4000, 28, 28)
    assert digits.test_images.shape == (1000, 28, 28)
    assert np.bincount(digits.train_labels).tolist() == [400] * 10
    assert np.bincount(digits.test_labels).tolist() == [100] * 10
    everything = np.concatenate([digits.train_images, digits.test_images])
    assert (everything.min(), everything.max()) == (0, 255)
    # Ink lies in the middle of an image, and a 1 has less of it than a 0.
    assert everything[:, 4:24, 4:24].sum() > 0.95 * everything.sum()
    of = [digits.train_images[digits.train_labels == digit].mean() for digit in (0, 1)]
    assert of[1] < 0.6 * of[0]


def test_no_digit_is_in_both_parts(digits: _data.Digits):
    train, test = ({image.tobytes() for image in images} for images in (digits.train_images, digits.test_images))
    assert len(train) == 4000
    assert len(test) == 1000
    assert not train & test


def test_the_split_is_always_the_same(digits: _data.Digits, tmp_path: Path):
    path = tmp_path / "digits.npz"
    _data.save(digits, path)
    again = _data.load(path)
    whole = _data.split(
        np.concatenate([digits.train_images, digits.test_images]), np.concatenate([digits.train_labels, digits.test_labels])
    )
    for name, array in vars(digits).items():
        assert np.array_equal(getattr(again, name), array)
        assert getattr(whole, name).shape == array.shape
    assert [file.name for file in tmp_path.iterdir()] == ["digits.npz"]


def test_an_epoch_meets_every_training_digit_once(digits: _data.Digits):
    labels = np.arange(4000)
    batches = _data.Batches(digits.train_images, labels, size=32, seed=0)
    met = np.concatenate([batches[step][1] for step in range(1, 126)])
    assert sorted(met) == list(range(4000))
    assert batches[126][1].tolist() != met[:32].tolist()


def test_a_batch_depends_on_its_seed_and_step_alone(digits: _data.Digits):
    one = _data.Batches(digits.train_images, digits.train_labels, size=64, seed=7)
    for step in range(1, 200):
        one[step]
    other = _data.Batches(digits.train_images, digits.train_labels, size=64, seed=7)
    for left, right in zip(one[150], other[150], strict=True):
        assert np.array_equal(left, right)
    elsewhere = _data.Batches(digits.train_images, digits.train_labels, size=64, seed=8)[150]
    assert not np.array_equal(one[150][1], elsewhere[1])


def test_images_are_moved_by_at_most_the_shift_and_nothing_else(digits: _data.Digits):
    images = digits.train_images[:50]
    moved, chosen = _data.Batches(images, np.arange(50), size=50, seed=1, shift=2)[1]
    padded = np.pad(_data.normalized(images), ((0, 0), (2, 2), (2, 2)), constant_values=-_data.MEAN / _data.DEVIATION)
    offsets = set()
    for image, index in zip(moved, chosen, strict=True):
        found = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(image, padded[index, down : down + 28, right : right + 28])
        ]
        assert found
        offsets.add(found[0])
    assert len(offsets) > 10


def test_normalized_pixels_have_mean_0_and_deviation_1(digits: _data.Digits):
    pixels = _data.normalized(digits.train_images)
    assert pixels.dtype == np.float32
    assert abs(pixels.mean()) < 0.02
    assert abs(pixels.std() - 1.0) < 0.02
