"""Health is for everybody who asks, and nobody who asks holds it up."""

import asyncio
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from mechanicd.service._health import Health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Aborted(Exception):
    pass


class Context:
    """A call of somebody who reads what comes, or (`reads=False`) nothing."""

    def __init__(self, reads: bool = True) -> None:
        self._reads = reads
        self.begun = asyncio.Event()
        self.read: asyncio.Queue[int] = asyncio.Queue()

    async def write(self, answer: Any) -> None:
        self.begun.set()
        if not self._reads:
            await asyncio.Event().wait()
        self.read.put_nowait(answer.status)

    async def abort(self, code: Any) -> None:
        raise Aborted(code)


def watch(health: Health, context: Context, service: str = "") -> "asyncio.Task[None]":
    return asyncio.create_task(health.Watch(health_pb2.HealthCheckRequest(service=service), context))


def test_who_watches_and_reads_nothing_holds_up_neither_the_others_nor_the_end() -> None:
    async def play() -> list[int]:
        health, deaf, other = Health(), Context(reads=False), Context()
        health.set("", True)
        tasks = [watch(health, deaf), watch(health, other)]
        await deaf.begun.wait()
        read = [await other.read.get()]
        health.set("", False)
        read.append(await other.read.get())
        health.set("", True)
        read.append(await other.read.get())
        health.end()
        health.set("", True)  # a store that works again, while the server ends
        read.append(await other.read.get())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return read

    assert asyncio.run(asyncio.wait_for(play(), 20)) == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]


def test_a_service_that_there_is_not_may_come_and_a_name_without_end_is_refused() -> None:
    async def play() -> list[int]:
        health, context = Health(), Context()
        task = watch(health, context, "later")
        read = [await context.read.get()]
        health.set("later", True)
        read.append(await context.read.get())
        task.cancel()
        with pytest.raises(Aborted):
            await watch(health, context, "x" * 257)
        return read

    assert asyncio.run(asyncio.wait_for(play(), 20)) == [UNKNOWN, SERVING]
