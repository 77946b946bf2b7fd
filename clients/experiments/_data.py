"""The prepared sets: one .npz file each, in a folder outside the repository that can be copied to a machine without network.

Whoever prepares them needs the packages; whoever trains needs the folder alone. `python -m experiments data` writes it.
"""

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

VARIABLE: Final = "MECHANICD_EXPERIMENTS_DATA"


class DataMissing(Exception):
    """A set is missing. The message says what to do."""


def default_folder() -> Path:
    """$MECHANICD_EXPERIMENTS_DATA, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(VARIABLE) or cache / "mechanicd" / "experiments")


def path_of(folder: Path, name: str) -> Path:
    """The path of a set, whether or not it exists."""
    return folder / f"{name}.npz"


def save(folder: Path, name: str, arrays: Arrays) -> None:
    """Writes a set atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.unfinished.npz"
    np.savez_compressed(unfinished, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own option
    os.replace(unfinished, path_of(folder, name))


def load(folder: Path, name: str) -> Arrays:
    """A set's arrays by name.

    Raises:
        DataMissing: it has not been prepared.
    """
    path = path_of(folder, name)
    try:
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise DataMissing(
            f"the set {name!r} is not in {folder}; prepare it there: python -m experiments data --to {folder}"
        ) from None
