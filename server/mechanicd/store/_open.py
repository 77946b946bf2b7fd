"""Opens the store that a URL names."""

import os
import re
import sys
from contextlib import suppress
from typing import Final

from mechanicd.store._errors import SchemaTooOld, StoreNotWritable, StorePackageMissing
from mechanicd.store._sqlite import SQLiteStore
from mechanicd.store._store import SQLStore
from mechanicd.store._url import StoreURL, parse

_WINDOWS: Final = re.compile(r"/?([A-Za-z]:[\\/].*)|.*\\.*", re.DOTALL)
"""A path with a drive, or with a backslash."""


def open_store(url: str, *, readonly: bool = False) -> SQLStore:
    """Opens the store that a URL names.

    Args:
        url: `sqlite:///FILE` (`sqlite:////FILE` from the root, `sqlite:///:memory:` keeps nothing), or
            `postgresql://USER:PASSWORD@HOST:PORT/DATABASE` as libpq takes it. FILE is taken as it is written: `%`, `#`, `?`
            and spaces stand for themselves; but `?NAME=VALUE` is an option, and SQLite stores have none.
        readonly: look at it only, beside a running server too; nothing is made or migrated.

    Raises:
        StoreError: the URL is of no known kind, or the place can't be used; its text says what to do, and has no password.
    """
    path = file_of(url)
    if path is not None:
        return SQLiteStore(path, readonly=readonly)
    place = parse(url)
    try:
        from mechanicd.store._postgres import PostgresStore
    except ModuleNotFoundError as error:
        raise StorePackageMissing(
            f"{place.shown}: a PostgreSQL store needs {error.name}; pip install 'mechanicd[postgres]'"
        ) from None
    return PostgresStore(url, readonly=readonly)


def open_beside(url: str) -> SQLStore:
    """Opens a store to change its tokens, also next to its running server. A store that does not exist yet is made.

    Raises:
        StoreError: as `open_store`.
    """
    place = parse(url)
    if place.sqlite is not None and os.path.isfile(_file(place.sqlite)):
        with suppress(SchemaTooOld):
            return SQLiteStore(_file(place.sqlite), beside=True)
    return open_store(url)


def file_of(url: str) -> str | None:
    """The file of a SQLite store, None for another engine. Raises StoreError."""
    place = parse(url)
    if place.sqlite is None:
        return None
    _check_options(place)
    return _file(place.sqlite)


def _file(path: str) -> str:
    """The path as this system writes it; a path of Windows is refused elsewhere, where it would name a file in this folder."""
    found = _WINDOWS.fullmatch(path)
    if found is None or (sys.platform != "win32" and os.path.lexists(path)):
        return path
    if sys.platform == "win32":
        return found[1] or path
    raise StoreNotWritable(f"{path} is a path of Windows, and this is {sys.platform}; write it as this system does, with /")


def _check_options(place: StoreURL) -> None:
    """Refuses options, unless there is a file of that name: version 0.1 made it."""
    if place.options and not os.path.lexists(str(place.sqlite)):
        file, named = place.shown.partition("?")[0], ", ".join(place.options)
        raise StoreNotWritable(f"{file}: SQLite stores take no options, but the URL has {named}; name the file alone")
