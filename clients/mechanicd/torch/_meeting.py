"""A meeting of all ranks in the store of their process group. It ends in bounded time, and knows who did not come.

A collective that one rank never joins blocks the others until the group's own time-out, often half an hour, and names nobody.
So what is decided once, before a training changes anything, is decided here: each rank leaves what it has to say, the leader
reads all of it and leaves the answer. A step does not meet.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch.distributed as dist

LEADER: Final = 0

_GRACE: Final = 5.0
"""Seconds that the others wait longer than the leader, for its answer."""

_FAREWELL: Final = 2.0
"""Seconds that a leader with bad news stays: its process may hold the store from which the others read them."""


class Absent(Exception):
    """Some ranks did not come.

    Attributes:
        ranks: their ranks in the group.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__(f"ranks {list(ranks)} did not come")
        self.ranks = list(ranks)


class StoreLost(Exception):
    """The store is gone, and with it the process that held it."""


class Meetings:
    """The meetings of one group's ranks. All ranks hold the same ones in the same order, as with collectives.

    Args:
        group: the process group; None is the default one.
        timeout: seconds that a meeting waits for the others.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        self._group = group
        self._timeout = timeout
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._name = ""

    def hold(self, said: str, decide: Callable[[list[str]], tuple[str, bool]]) -> str:
        """Hands in what this rank says; returns the answer.

        Args:
            said: what this rank says.
            decide: for the leader: the answer to what all ranks say, in the order of their ranks, and whether it ends the
                training.

        Raises:
            Absent: some ranks did not come.
            StoreLost: there is no store any more.
        """
        try:
            store = self._store()
            if store is None:  # as with MPI
                return self._hold_without(said, decide)
            self._name = f"mechanicd/{store.add(f'mechanicd/{self._rank}', 1)}"
            store.set(self._key(self._rank), said)
            answer = self._lead(store, decide) if self._rank == LEADER else self._follow(store)
        except RuntimeError as error:  # what every store raises, whatever its transport
            raise StoreLost(str(error)) from error
        if answer["absent"]:
            raise Absent(answer["absent"])
        text: str = answer["text"]
        return text

    def _hold_without(self, said: str, decide: Callable[[list[str]], tuple[str, bool]]) -> str:
        """By a collective, which waits for as long as the group does. Each rank comes to the same answer."""
        everything = [""] * self._world
        dist.all_gather_object(everything, said, group=self._group)
        return decide(everything)[0]

    def private_store(self) -> Any:
        """A store for these ranks alone, another one after each meeting; None if the group has none."""
        store = self._store()
        return None if store is None else dist.distributed_c10d.PrefixStore(self._key("connections"), store)

    def wait_for(self, place: str) -> None:
        """Notes that this rank waits at a place of the training; `missing_at` tells who does not."""
        self._store().set(self._key(f"waits/{self._rank}"), place)

    def missing_at(self, place: str, seconds: float) -> list[int]:
        """The ranks that do not wait at a place within so many seconds.

        Raises:
            StoreLost: there is no store any more.
        """
        try:
            store = self._store()
            keys = [self._key(f"waits/{rank}") for rank in range(self._world)]
            end = time.monotonic() + seconds
            while True:
                _arrivals(store, keys, end)
                missing = [rank for rank, key in enumerate(keys) if not store.check([key]) or store.get(key).decode() != place]
                if not missing or time.monotonic() >= end:
                    return missing
                time.sleep(0.05)
        except RuntimeError as error:
            raise StoreLost(str(error)) from error

    def _lead(self, store: Any, decide: Callable[[list[str]], tuple[str, bool]]) -> dict[str, Any]:
        keys = [self._key(rank) for rank in range(self._world)]
        late = _arrivals(store, keys, time.monotonic() + self._timeout)
        absent = [rank for rank, key in enumerate(keys) if key in late]
        text, bad = ("", True) if absent else decide([store.get(key).decode() for key in keys])
        store.set(self._key("answer"), json.dumps({"absent": absent, "text": text}))
        end = time.monotonic() + _FAREWELL
        while bad and store.add(self._key("read"), 0) < self._world - 1 - len(absent) and time.monotonic() < end:
            time.sleep(0.01)
        return {"absent": absent, "text": text}

    def _follow(self, store: Any) -> dict[str, Any]:
        key = self._key("answer")
        if _arrivals(store, [key], time.monotonic() + self._timeout + _GRACE):
            return {"absent": [rank for rank in range(self._world) if not store.check([self._key(rank)])] or [LEADER]}
        answer: dict[str, Any] = json.loads(store.get(key))
        store.add(self._key("read"), 1)
        return answer

    def _key(self, what: object) -> str:
        return f"{self._name}/{what}"

    def _store(self) -> Any:
        """Asked for each time: who keeps a store keeps its port."""
        group: Any = dist.group.WORLD if self._group is None else self._group
        return dist.distributed_c10d._world.pg_map[group][1]  # newer versions of torch have group.get_group_store()


def _arrivals(store: Any, keys: Sequence[str], end: float) -> list[str]:
    """Waits until all keys are there, or until the end; those that are not."""
    late, pause = list(keys), 0.001
    while True:
        while late and store.check(late[:1]):
            late.pop(0)
        if not late or time.monotonic() >= end:
            return [key for key in late if not store.check([key])]
        time.sleep(pause)
        pause = min(1.5 * pause, 0.1)
