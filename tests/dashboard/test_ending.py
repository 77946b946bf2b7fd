"""How the page's process ends: a cancellation is never lost to an answer that comes at the same moment."""

import asyncio
from pathlib import Path

import pytest

from mechanicd.dashboard._poller import Watch
from mechanicd.dashboard._reader import Reader
from mechanicd.dashboard._table import Table
from mechanicd.runs import Silence
from mechanicd.store import Clock


def test_a_wait_for_a_change_is_cancelled_although_the_change_comes(tmp_path: Path) -> None:
    async def end() -> None:
        watch = Watch(Reader(f"sqlite:///{tmp_path / 'x.db'}", "watch"), Table(Silence()), Clock())
        waiting = asyncio.create_task(watch.change(30.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        watch.wake()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(waiting), 5.0)

    asyncio.run(end())


def test_a_call_of_the_store_is_cancelled_although_its_answer_comes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def end() -> None:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", lambda *_: answer)
        calling = asyncio.create_task(Reader(f"sqlite:///{tmp_path / 'x.db'}", "watch").call(lambda store: 1))
        await asyncio.sleep(0)
        answer.set_result(1)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(calling), 5.0)

    asyncio.run(end())
