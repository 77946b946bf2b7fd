"""Pages of a list: how many items, how much of them fits into one message, and the token of the next page."""

import base64
import hashlib
import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Final, TypeVar

from google.protobuf.message import Message

from mechanicd.service._errors import ServiceError
from mechanicd.service._slices import sliced

M = TypeVar("M", bound=Message)

PAGE_BYTES: Final = 3_500_000
"""What a list puts into one response: gRPC clients refuse more than 4 MiB unless told otherwise."""
MOST_BYTES: Final = 60 * 2**20
"""What any response may take: our own clients and a client that follows the contract accept 64 MiB."""
GONE_BYTES: Final = 400_000
"""What the names of runs that are gone take of a response, beside a page of runs."""
_VALUE, _ITEM = 8, 96


def fit(most: int, values: int, size: int = PAGE_BYTES) -> int:
    """At most `most` items of so many float64 each, as many as `size` bytes hold, but one at least."""
    return min(most, max(1, size // (_VALUE * values + _ITEM)))


async def portions(messages: Iterable[M]) -> AsyncGenerator[list[M], None]:
    """The messages in their order, in lists that fit into one response each; one empty list where there are none."""
    portion: list[M] = []
    size = 0
    async for message in sliced(messages):
        size += message.ByteSize()
        if portion and size > PAGE_BYTES:
            yield portion
            portion, size = [], message.ByteSize()
        portion.append(message)
    yield portion


def texts(given: Iterable[str], most: int) -> Iterator[list[str]]:
    """The texts in their order, in lists of about `most` bytes each; one empty list where there are none."""
    portion: list[str] = []
    size = 0
    for text in given:
        portion.append(text)
        size += len(text)  # names are ASCII
        if size > most:
            yield portion
            portion, size = [], 0
    yield portion


def page_size(asked: int, default: int, most: int) -> int:
    """Raises ServiceError INVALID_RANGE."""
    if asked < 0:
        raise ServiceError(
            "INVALID_RANGE", f"page_size is {asked}; use 0 for the default, or a positive number", field="page_size"
        )
    return min(asked or default, most)


def token_out(position: list[str], *about: str) -> str:
    """The token of the page at `position`, for requests that ask `about` the same."""
    return base64.urlsafe_b64encode("\n".join([_digest(about), *position]).encode()).decode()


def token_in(token: str, *about: str, parts: int = 1) -> list[str] | None:
    """The position of a page, of so many parts; None for the first. Raises ServiceError INVALID_PAGE_TOKEN."""
    if not token:
        return None
    try:
        digest, *position = base64.urlsafe_b64decode(token.encode()).decode().split("\n")
    except ValueError:
        digest, position = "", []
    if digest != _digest(about) or len(position) != parts:
        raise _foreign()
    return position


def step_token_in(token: str, *about: str) -> int | None:
    """The step at which a page begins; None for the first page. Raises ServiceError INVALID_PAGE_TOKEN."""
    position = token_in(token, *about)
    if position is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", position[0]):
        raise _foreign()
    return int(position[0])


def _foreign() -> ServiceError:
    return ServiceError(
        "INVALID_PAGE_TOKEN",
        "this page token came from a different request; send it with the request that returned it, unchanged",
        field="page_token",
    )


def _digest(about: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
