"""A watch of runs that goes on after an outage: what the watcher has seen is kept, so that nothing is told twice or missed."""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from mechanicd.client._errors import SURVIVED, AccessDenied, MechanicdError, NotImplementedByServer, ServerUnavailable
from mechanicd.client._targets import Targets
from mechanicd.client._transport import Transport
from mechanicd.v1 import run_service_pb2

log = logging.getLogger("mechanicd.client")

_BACKOFF_FIRST: Final = 0.1
_BACKOFF_MOST: Final = 5.0


def watch(targets: Targets, request: Any, lost: Callable[[MechanicdError | None], None] | None) -> Iterator[Any]:
    """See `Client.watch`."""
    told = lost or _log
    shown: dict[str, bytes] = {}  # each run as the watcher knows it
    begun = away = False
    denied: set[str] = set()  # reasons that the watcher was told of since it had an answer
    attempt = 0
    while True:
        error: MechanicdError = ServerUnavailable("SERVER_UNREACHABLE", "the server ended the watch")
        for address in targets.addresses():
            transport: Transport | None = None
            fresh: set[str] | None = set() if begun else None  # after an outage, first come all runs that there are
            try:
                transport = targets.transport(address)
                for response in transport.watch(request):
                    if away:
                        told(None)
                    begun, away, attempt = True, False, 0
                    denied.clear()
                    if fresh is None:
                        yield _seen(response, shown)
                        continue
                    fresh.update(run.name for run in response.runs)
                    yield from _news(response.runs, shown)
                    if not response.more:
                        if gone := sorted(shown.keys() - fresh):
                            yield _seen(run_service_pb2.WatchRunsResponse(gone=gone), shown)
                        fresh = None
            except (*SURVIVED, NotImplementedByServer) as failed:
                error = failed
                if targets.closed or not (begun or isinstance(failed, ServerUnavailable)):
                    raise
                if transport is not None:
                    targets.renewed(transport, failed)
            news = isinstance(error, AccessDenied) and error.reason not in denied
            if begun and (news or not away):
                told(error)
                away = True
                denied.add(error.reason)
        if not begun:
            raise error
        time.sleep(random.uniform(0.0, min(_BACKOFF_MOST, _BACKOFF_FIRST * 2**attempt)))
        attempt = min(attempt + 1, 10)


def _seen(response: Any, shown: dict[str, bytes]) -> Any:
    for name in response.gone:
        shown.pop(name, None)
    shown.update({run.name: run.SerializeToString(deterministic=True) for run in response.runs})
    return response


def _news(runs: Iterable[Any], shown: dict[str, bytes]) -> Iterator[Any]:
    """Of the runs that there are, those that the watcher does not know, or knows otherwise."""
    changed = [run for run in runs if shown.get(run.name) != run.SerializeToString(deterministic=True)]
    if changed:
        yield _seen(run_service_pb2.WatchRunsResponse(runs=changed), shown)


def _log(error: MechanicdError | None) -> None:
    if error is None:
        log.warning("the watch goes on: the server answers again")
    else:
        log.warning("the watch waits for its server, and goes on once that answers: %s", str(error))
