"""The URL of a store: what it names, and as much of it as may be shown. Pure.

A password can be anywhere in a URL that is wrong, so a message shows only what was understood.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

from mechanicd.store._errors import StoreNotWritable
from mechanicd.v1.names import plain

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}):(?://)?(.*)", re.DOTALL)
_POSTGRES: Final = ("postgresql", "postgres")
_MAY_HIDE: Final = re.compile(r"[@=?:;%\s]")
_SECRET: Final = r"(?:pass\w*|pwd|secret\w*|token|\w*key)"
_ASSIGNED: Final = re.compile(rf"\b{_SECRET}\s*=", re.IGNORECASE)
_SECRET_OPTION: Final = re.compile(rf"([?&]{_SECRET}=).*", re.IGNORECASE | re.DOTALL)
_COLON: Final = re.compile(":|%3A", re.IGNORECASE)
_MOST_PORT: Final = 65535
_HOST: Final = re.compile(r"(?:[^:\[\]]*|\[[^\[\]]*\])(?::[0-9]*)?")
_OPTION: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_ESCAPES: Final = "in a user's name or a password, write % as %25, @ as %40, / as %2F, : as %3A, ? as %3F and a space as %20"


class StoreURL(NamedTuple):
    """A URL that names a store.

    Attributes:
        sqlite: the path of a SQLite file, or ":memory:"; None for PostgreSQL.
        shown: the URL without its password and its options, fit for logs.
        options: the names of its options; "" for one without a name that may be shown.
    """

    sqlite: str | None
    shown: str
    options: tuple[str, ...] = ()


def parse(url: str) -> StoreURL:
    """Reads a store's URL.

    The path of a SQLite file is taken as it is written: `%`, `#`, `?` and spaces stand for themselves. What looks like options
    at its end is told as options.

    Raises:
        StoreNotWritable: the URL names no store; the message shows nothing of it that may be a password.
    """
    found = _SCHEME.fullmatch(url)
    scheme = found[1] if found else ""
    start = f"{scheme}://"
    if url.startswith(start):
        if scheme in _POSTGRES:
            return _postgres(start, url.removeprefix(start))
        path = url.removeprefix("sqlite:///")
        if path not in ("", url) and "\0" not in path:
            options = _options(path)
            return StoreURL(path, plain(_SECRET_OPTION.sub(r"\1…", url)), options if all(options) else ())
    raise StoreNotWritable(f"{_hidden(url)}: expected sqlite:///FILE or postgresql://USER@HOST/DATABASE")


def without_password(url: str) -> str:
    """The URL without its password and its options, fit for logs; of a URL that names no store, what can't be a password."""
    try:
        return parse(url).shown
    except StoreNotWritable:
        return _hidden(url)


def _postgres(start: str, rest: str) -> StoreURL:
    # As libpq reads it: a user, and a password, if an @ comes before the first slash; they end at the first @.
    login, at, after = rest.partition("@")
    if not at or "/" in login:
        login, at, after = "", "", rest
    place = after.partition("?")[0]
    hosts = place.partition("/")[0]
    wrong = ""
    if "@" in place or not all(map(_is_host, hosts.split(","))):
        wrong = "it has no HOST:PORT where one should be"
    elif _ASSIGNED.search(unquote(place)):
        wrong = "its options do not begin with a ?"
    elif _BAD_ESCAPE.search(f"{login} {after}"):
        wrong = "a % in it begins no escape"
    elif re.search(r"\s", login + after):
        wrong = "it has a space"
    if wrong:
        raise StoreNotWritable(f"{start}…: this URL can't be read: {wrong}; {_ESCAPES}")
    if "@" in after:  # in its options; or a password with a ? reaches that far
        return StoreURL(None, f"{start}…")
    return StoreURL(None, plain(f"{start}{_COLON.split(login)[0]}{at}{place}"), _options(after))


def _is_host(host: str) -> bool:
    port = host.rpartition(":")[2]
    return _HOST.fullmatch(host) is not None and (not port.isdecimal() or (len(port) <= 5 and int(port) <= _MOST_PORT))


def _options(text: str) -> tuple[str, ...]:
    _, mark, query = text.partition("?")
    found = [pair.partition("=") for pair in query.split("&")] if mark else []
    return tuple(name if equals and _OPTION.fullmatch(name) else "" for name, equals, _ in found)


def _hidden(url: str) -> str:
    """As much of a URL that names no store as can't be a password."""
    found = _SCHEME.fullmatch(url)
    if not _MAY_HIDE.search(found[2] if found else url):
        return plain(url)
    return f"{found[1]}:…" if found else "…"
