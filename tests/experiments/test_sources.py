"""Data sets are split once and for all, and scaled by statistics of train alone."""

import numpy as np

from experiments import _sources
from experiments.texts import Vocabulary, padded


def test_a_split_has_each_example_once_and_each_class_in_every_part() -> None:
    labels = np.repeat([0, 1, 2], [40, 60, 100])
    parts = _sources.split(labels)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(200))
    assert {part: len(indices) for part, indices in parts.items()} == {"train": 140, "val": 30, "test": 30}
    for indices in parts.values():
        assert set(labels[indices]) == {0, 1, 2}
    again = _sources.split(labels)
    assert all((again[part] == parts[part]).all() for part in parts)


def test_columns_are_scaled_by_train_alone_and_constant_ones_dropped() -> None:
    random = np.random.default_rng(0)
    x = {part: random.normal(5.0, 3.0, (50, 3)) for part in ("train", "val", "test")}
    for part in x.values():
        part[:, 1] = 7.0
    made = _sources.standardized({f"x_{part}": values for part, values in x.items()})
    assert [made[f"x_{part}"].shape for part in x] == [(50, 2)] * 3
    assert np.abs(made["x_train"].mean(axis=0)).max() < 1e-6
    expected = (x["test"][:, 0] - x["train"][:, 0].mean()) / x["train"][:, 0].std()
    assert np.allclose(made["x_test"][:, 0], expected, atol=1e-6)


def test_the_digits_are_those_of_scikit_learn() -> None:
    made = _sources.digits()
    assert sum(len(made[f"y_{part}"]) for part in ("train", "val", "test")) == 1797
    assert made["x_train"].shape[1:] == (8, 8)
    assert set(made["y_test"]) == set(range(10))


def test_a_vocabulary_decodes_what_it_encoded_and_marks_start_and_end() -> None:
    texts = ["the cat sat on the mat", "the dog sat on the cat"] * 20
    vocabulary = Vocabulary(texts, 300)
    tokens = vocabulary.encode(texts[:2])
    rows = padded(tokens, 20, vocabulary.START, vocabulary.END)
    for row, sequence in zip(rows, tokens, strict=True):
        assert row[0] == vocabulary.START
        assert list(row[1 : 1 + len(sequence)]) == list(sequence)
        assert row[1 + len(sequence)] == vocabulary.END
        assert not row[2 + len(sequence) :].any()
    assert len(tokens[0]) < len(texts[0])
