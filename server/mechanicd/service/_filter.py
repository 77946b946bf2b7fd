"""List filters as requests bring them."""

from mechanicd.service._errors import ServiceError
from mechanicd.store import FilterError, Matches, parse_filter


def parse(text: str) -> Matches:
    """A predicate over runs; see `store.parse_filter`.

    Raises:
        ServiceError: INVALID_FILTER, with the position.
    """
    try:
        return parse_filter(text)
    except FilterError as error:
        raise ServiceError(
            "INVALID_FILTER", str(error), {"filter": error.text, "position": error.position}, field="filter"
        ) from None
