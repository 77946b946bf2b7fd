"""Opens the store that a URL names."""

from urllib.parse import urlsplit, urlunsplit

from mechanicd.store._errors import StoreNotWritable, StorePackageMissing
from mechanicd.store._sqlite import SQLiteStore
from mechanicd.store._store import SQLStore

_POSTGRES = ("postgresql", "postgres")


def open_store(url: str, *, readonly: bool = False) -> SQLStore:
    """Opens the store that a URL names.

    Args:
        url: `sqlite:///FILE` (`sqlite:////FILE` from the root, `sqlite:///:memory:` keeps nothing), or
            `postgresql://USER:PASSWORD@HOST:PORT/DATABASE` as libpq takes it.
        readonly: look at it only, beside a running server too; nothing is made or migrated.

    Raises:
        StoreError: the URL is of no known kind, or the place can't be used; its text says what to do.
    """
    scheme, _, place = url.partition("://")
    path = place.removeprefix("/")
    if scheme == "sqlite" and path != place and path:
        return SQLiteStore(path, readonly=readonly)
    if scheme in _POSTGRES:
        try:
            from mechanicd.store._postgres import PostgresStore
        except ModuleNotFoundError as error:
            raise StorePackageMissing(
                f"{without_password(url)}: a PostgreSQL store needs {error.name}; pip install 'mechanicd[postgres]'"
            ) from None
        return PostgresStore(url, readonly=readonly)
    raise StoreNotWritable(f"{without_password(url)}: expected sqlite:///FILE or postgresql://USER@HOST/DATABASE")


def without_password(url: str) -> str:
    """The URL without its password, fit for logs."""
    if not url.startswith(_POSTGRES):
        return url
    parts = urlsplit(url)
    user, separator, host = parts.netloc.rpartition("@")
    hidden = f"{user.partition(':')[0]}{separator}{host}" if separator else parts.netloc
    return urlunsplit((parts.scheme, hidden, parts.path, "", ""))
