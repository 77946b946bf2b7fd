"""POSTs to a URL once when a run starts to need attention, and once when it no longer does. Nothing waits for it."""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from time import time_ns
from typing import Any, Final

import orjson

from mechanicd.dashboard._config import PageConfig
from mechanicd.dashboard._delivery import Sender
from mechanicd.dashboard._poller import Watch
from mechanicd.dashboard._run_json import Item

log = logging.getLogger("mechanicd.dashboard")

LOOK_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 30
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
ATTEMPTS: Final = 12
"""With the pauses, about nine minutes."""
MOST_WAITING: Final = 1000

Key = tuple[str, str]
"""A run's full name, and the kind of the alert."""


async def tell(config: PageConfig, watch: Watch) -> None:
    """Sends the alerts in the table to `config.webhook` until it is cancelled.

    It writes what it has sent to stdout. The serving process remembers that for the next page process.
    """
    webhook = Webhook(config.webhook, config.told)
    sending = asyncio.create_task(webhook.run(), name="webhook-sending")
    try:
        while True:
            items = settled(watch.table.items(), watch.clock.now() - config.started)
            if not watch.trouble and webhook.look(items):
                sys.stdout.write(f"{orjson.dumps({'told': webhook.told}).decode()}\n")
                sys.stdout.flush()
            await watch.change(LOOK_SECONDS)
    finally:
        sending.cancel()


def settled(items: Iterable[Item], age: int) -> list[Item]:
    """The runs, with the alerts that count when the server has run for `age` ns.

    After a time without a server, every run looks silent or cut off until its trainer has come back.
    """
    if age >= SETTLE_SECONDS * 10**9:
        return list(items)
    return [{**item, "needs": [need for need in item["needs"] if need["kind"] not in ("silent", "outage")]} for item in items]


class Webhook:
    """Sends one event at a time, in order; retries after growing pauses.

    Args:
        url: the URL to POST to.
        told: the alerts that were sent already, so that a new process does not send them again.
    """

    def __init__(self, url: str, told: Iterable[Key] = ()) -> None:
        self._sender = Sender(url)
        self._known: dict[Key, Mapping[str, Any]] = {}
        self._told: set[Key] = set(told)
        self._waiting: deque[dict[str, Any]] = deque()
        self._more = asyncio.Event()

    @property
    def told(self) -> list[Key]:
        """The current alerts that were sent to the receiver or are queued for it."""
        return sorted(self._told)

    def look(self, items: Iterable[Item]) -> bool:
        """Queues what is new compared with what was sent; returns whether there was anything."""
        now = {(item["name"], need["kind"]): (item, need) for item in items for need in item["needs"]}
        new = [key for key in now if key not in self._told]
        over = [key for key in self._told if key not in now]
        for key in new:
            self._queue("began", key, *now[key])
        for key in over:
            self._queue("ended", key, None, None)
        self._told.update(new)
        self._told.difference_update(over)
        return bool(new or over)

    async def run(self) -> None:
        """Sends what is queued until it is cancelled."""
        while True:
            while self._waiting:
                await self._deliver(self._waiting.popleft())
            self._more.clear()
            await self._more.wait()

    def _queue(self, event: str, key: Key, item: Item | None, need: Mapping[str, Any] | None) -> None:
        if len(self._waiting) >= MOST_WAITING:
            lost = self._waiting.popleft()
            log.error("webhook: too many are waiting; dropped %s %s of %s", lost["need"]["kind"], lost["event"], lost["run"])
        name, kind = key
        told = {"kind": kind, "message": need["message"], "step": need["step"]} if need else {"kind": kind}
        run = {field: item[field] for field in ("status", "step", "S", "labels")} if item else {}
        self._waiting.append({"event": event, "time": time_ns() // 10**6, "run": name, "need": told, **run})
        self._more.set()

    async def _deliver(self, event: dict[str, Any]) -> None:
        body, pause = orjson.dumps(event), FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            failure = await self._sender.post(body)
            if not failure:
                if attempt > 1:
                    log.info("webhook: delivered at attempt %d", attempt)
                return
            if attempt == 1:
                log.warning("webhook: %s; retrying for some minutes", failure)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        log.error("webhook: %s; gave up on %s %s of %s", failure, event["need"]["kind"], event["event"], event["run"])
