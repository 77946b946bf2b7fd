"""A fleet that trains at a server, through the real protocol: runs are opened one by one, and their steps go over streams.

One stream carries many runs, as a sweep in one process does. Each batch of runs has one message on its way at a time; at a
given rate the batches' messages are spread evenly over the time between two steps.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from replay.model import Model
from replay.plans import ENDS, Plan

from mechanicd.client import Client, MechanicdError
from mechanicd.client._address import Address
from mechanicd.client._transport import Link, Transport, step_error
from mechanicd.v1 import resources_pb2, tuner_service_pb2

_BATCH: Final = 32
_SECONDS: Final = 30.0


class _Batch:
    """Some runs of one number of scale groups, opened at the server; `due` is when their next step goes."""

    def __init__(self, client: Client, project: str, plans: Sequence[Plan], seed: int) -> None:
        self.plans, self.due = plans, 0.0
        self._client = client
        self._model = Model(plans, seed)
        self._groups = self._model.groups
        opened = [self._open(project, plan) for plan in plans]
        self._session = [each.session for each in opened]
        self._step = np.array([each.last_step for each in opened])
        self._S = np.array([each.scale for each in opened]).reshape(-1)
        self.left = np.array([plan.steps for plan in plans]) - self._step
        self._asked: list[int] = []
        for index in np.flatnonzero(self.left <= 0).tolist():
            self._close(index)

    def _open(self, project: str, plan: Plan) -> Any:
        config = resources_pb2.TunerConfig(scale_groups=plan.scale_groups)
        name = f"projects/{project}/runs/{plan.run}"
        request = tuner_service_pb2.OpenSessionRequest(
            name=name, config=config, labels=plan.labels, client="fleet.py", command=plan.command
        )
        return self._client.call("OpenSession", request, _SECONDS)

    def send(self, link: Link) -> None:
        """One step of each run that is not done, in one message."""
        step = (self._step + 1).astype(np.float64)
        columns = step.repeat(self._groups)
        (noise,) = self._model.noise(1)
        made = self._model.reductions(columns, self._model.wanted(columns), self._S, noise)
        by_run = made.reshape(4, len(self.plans), self._groups)
        lr = self._model.base_lr(step)
        self._asked = np.flatnonzero(self.left > 0).tolist()
        link.send(
            *(
                tuner_service_pb2.StepRequest(
                    session=self._session[index],
                    step=int(step[index]),
                    reductions=resources_pb2.Reductions(
                        delta_dot_g=by_run[0, index],
                        delta_dot_x=by_run[1, index],
                        g_norm_sq=by_run[2, index],
                        x_norm_sq=by_run[3, index],
                    ),
                    base_lr=None if np.isnan(lr[index]) else lr[index],
                )
                for index in self._asked
            )
        )

    def receive(self, link: Link) -> int:
        """The answers to `send`; how many."""
        for index in self._asked:
            result = link.receive(_SECONDS)
            if result.HasField("error"):
                raise step_error(result.error)
            self._S[index * self._groups : (index + 1) * self._groups] = result.scale
            self._step[index] = result.step
            self.left[index] -= 1
            if self.left[index] == 0:
                self._close(index)
        return len(self._asked)

    def _close(self, index: int) -> None:
        plan = self.plans[index]
        if plan.fate in ENDS:
            request = tuner_service_pb2.CloseSessionRequest(
                session=self._session[index], status=f"RUN_STATUS_{plan.fate.upper()}", message=ENDS[plan.fate]
            )
            self._client.call("CloseSession", request, _SECONDS)


def drive(
    target: str,
    project: str,
    plans: Sequence[Plan],
    rate: float,
    streams: int,
    seed: int,
    seconds: float,
    progress: Callable[[int, int], None],
) -> int:
    """Trains the fleet until every run is at its end, or for so many seconds; the steps taken.

    Runs that the server has go on where they are. Sessions of fates that are not closed stay open, as a killed trainer's do.

    Args:
        target: `HOST:PORT` or `unix:PATH`.
        rate: steps a second of each run; 0 for as many as go.
        streams: connections, a thread each.
        progress: called with (steps taken, steps in all).

    Raises:
        MechanicdError: the server refuses something, or is away.
    """
    client = Client(target)
    ordered = sorted(plans, key=lambda plan: len(plan.scale_groups))
    portions = [ordered[begin : begin + _BATCH] for begin in range(0, len(ordered), _BATCH)]
    alike = [
        [plan for plan in portion if len(plan.scale_groups) == groups]
        for portion in portions
        for groups in sorted({len(plan.scale_groups) for plan in portion})
    ]
    failed: list[BaseException] = []
    taken = [0] * streams
    stop = threading.Event()
    try:
        batches = [_Batch(client, project, portion, seed) for portion in alike]
        total = int(sum(batch.left.clip(min=0).sum() for batch in batches))
        threads = []
        for index in range(streams):
            own = batches[index::streams]
            threads.append(threading.Thread(target=_train, args=(target, own, rate, index, taken, stop, failed), daemon=True))
            threads[-1].start()
        end = time.monotonic() + seconds
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
            progress(sum(taken), total)
            for thread in threads:
                thread.join(0.1 / streams)
        stop.set()
        for thread in threads:
            thread.join(_SECONDS)
        progress(sum(taken), total)
    finally:
        stop.set()
        client.close()
    if failed:
        raise failed[0]
    return sum(taken)


def _train(
    target: str,
    batches: list[_Batch],
    rate: float,
    index: int,
    taken: list[int],
    stop: threading.Event,
    failed: list[BaseException],
) -> None:
    transport = Transport(Address(target))
    link = transport.link(())
    begin = time.monotonic()
    for place, batch in enumerate(batches):
        batch.due = begin + (place / len(batches) / rate if rate else 0.0)
    try:
        while batches and not stop.is_set():
            now = time.monotonic()
            ready = [batch for batch in batches if batch.due <= now]
            for batch in ready:
                batch.send(link)
            for batch in ready:
                taken[index] += batch.receive(link)
                batch.due += 1.0 / rate if rate else 0.0
            batches = [batch for batch in batches if (batch.left > 0).any()]
            if rate and batches:
                stop.wait(max(0.0, min(batch.due for batch in batches) - time.monotonic()))
    except MechanicdError as error:
        failed.append(error)
        stop.set()
    finally:
        with contextlib.suppress(Exception):
            link.close()
        transport.close()
