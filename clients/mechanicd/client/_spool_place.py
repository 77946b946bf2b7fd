"""How much of a spool file a server has already: decided by content, so that importing again changes nothing.

A run at a server is its current history (branch 0) and a branch for each rewind, with the steps that this one abandoned. From
them follows where each step of the file would be now, whatever happened to the run since. All that should be there must be
there, bit for bit; then the server's last step tells where the import goes on.
"""

from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from mechanicd.client import _spool_history
from mechanicd.client._client import Client
from mechanicd.client._errors import MechanicdError
from mechanicd.client._spool_history import History
from mechanicd.client._wire import config_in
from mechanicd.v1 import resources_pb2, run_service_pb2

_PAGE: Final = 10_000
_SECONDS: Final = 60.0


class Place(NamedTuple):
    """Where an import goes on.

    Attributes:
        opening: the index of the session; that of the last one where the server has all.
        step: the last step that the server has of that session; what it starts after if it has none.
        further: whether the run went on at the server, beyond the file.
    """

    opening: int
    step: int
    further: bool


class _Piece(NamedTuple):
    """Steps of one session that are in one branch of the server."""

    opening: int
    branch: int
    first: int
    last: int


def place(client: Client, run: resources_pb2.Run, file: BinaryIO, history: History) -> Place:
    """How far the server has the file.

    Raises:
        MechanicdError: RUN_DIFFERS: the run exists with other content.
    """
    if history.config != config_in(run.config):
        raise _spool_history.config_mismatch(run.name, config_in(run.config), history.config)
    said = ""
    for before in range(run.rewind_count + 1):  # rewinds from before the first session of the file
        found, what = _try(client, run, file, history, before)
        if found is not None:
            return found
        said = said or what
    raise MechanicdError(
        "RUN_DIFFERS",
        f"{run.name} exists at the server, at step {run.durable_step}, with other content than {history.path}: {said}. Import "
        "under another name (--as), or delete the server's run first",
    )


def _try(client: Client, run: resources_pb2.Run, file: BinaryIO, history: History, before: int) -> tuple[Place | None, str]:
    """The place, if the run had been rewound `before` times when the file began; else what contradicts."""
    openings, last = history.openings, int(run.durable_step)
    stages = openings[-1].stage
    stage = min(run.rewind_count - before, stages)
    later = run.rewind_count - before - stage
    current = [each for each in openings if each.stage == stage]
    if last < openings[0].after:
        return None, f"the file begins after step {openings[0].after}, which the server lacks"
    if not later and stage < stages and last > current[-1].last:
        return None, f"the file has {current[-1].last} steps there"
    # After the n-th rewind the run went on after step cuts[n].
    cuts = [each.after for n, each in enumerate(openings) if n and each.stage > openings[n - 1].stage][:stage]
    cuts += [_first(client, run.name, before + n) - 1 for n in range(stage + 1, stage + later + 1)]
    for piece in _pieces(history, cuts, stage, last if not later else None):
        branch = before + piece.branch if piece.branch else 0
        what = _difference(client, run.name, file, history, piece._replace(branch=branch))
        if what:
            return None, what
    ahead = next((n for n, each in enumerate(openings) if each.stage == stage and each.last > last), None)
    if not later and ahead is not None:
        return Place(ahead, last, False), ""
    if stage < stages:
        following = openings.index(current[-1]) + 1
        return Place(following, openings[following].after, False), ""
    return Place(len(openings) - 1, history.last, bool(later) or last > history.last), ""


def _pieces(history: History, cuts: list[int], stage: int, last: int | None) -> Iterator[_Piece]:
    """Where the steps of the file up to a stage are at the server, if its last step is `last`; None where it went on."""
    for index, opening in enumerate(history.openings):
        if opening.stage > stage:
            return
        end = opening.last if last is None or opening.stage < stage else min(opening.last, last)
        for number, cut in enumerate(cuts[opening.stage :], opening.stage + 1):
            if cut < end:
                if max(cut, opening.after) < end:
                    yield _Piece(index, number, max(cut, opening.after) + 1, end)
                end = cut
        if opening.after < end:
            yield _Piece(index, 0, opening.after + 1, end)


def _difference(client: Client, run: str, file: BinaryIO, history: History, piece: _Piece) -> str:
    """What the server has otherwise than the file; "" if nothing."""
    theirs, missing = _records(client, run, piece.branch, piece.first, piece.last), 0
    there = next(theirs, None)
    for ours in _steps(file, history, piece):
        if there is None or there.step != ours.step:
            missing = missing or ours.step
            continue
        if _content(there) != _content(ours):
            return f"step {ours.step} is another one"
        there = next(theirs, None)
    return _difference_in_summary(client, run, file, history, piece) if missing else ""


def _difference_in_summary(client: Client, run: str, file: BinaryIO, history: History, piece: _Piece) -> str:
    """The same where the server no longer has each step, but a summary of 16 and more of them (`--keep-steps`)."""
    request = run_service_pb2.QuerySeriesRequest(
        name=run, branch=piece.branch, first_step=piece.first, last_step=piece.last, max_buckets=_PAGE
    )
    buckets = client.call("QuerySeries", request, _SECONDS).buckets
    expected = piece.first
    for bucket in buckets:
        if bucket.first_step > expected or bucket.count != bucket.last_step - bucket.first_step + 1:
            break
        expected = bucket.last_step + 1
    if expected <= piece.last:
        return f"the server lacks step {expected}"
    scales = {bucket.last_step: tuple(bucket.scale.last) for bucket in buckets}
    for ours in _steps(file, history, piece):
        if scales.get(ours.step, tuple(ours.scale)) != tuple(ours.scale):
            return f"step {ours.step} has another S"
    return ""


def _steps(file: BinaryIO, history: History, piece: _Piece) -> Iterator[resources_pb2.StepRecord]:
    for step in _spool_history.steps(file, history.openings[piece.opening]):
        if step.step > piece.last:
            return
        if step.step >= piece.first:
            yield step


def _content(step: resources_pb2.StepRecord) -> bytes:
    """What must be equal bit for bit."""
    kept = resources_pb2.StepRecord(step=step.step, outcome=step.outcome, reductions=step.reductions, scale=step.scale)
    if step.HasField("base_lr"):
        kept.base_lr = step.base_lr
    return kept.SerializeToString(deterministic=True)


def _records(client: Client, run: str, branch: int, first: int, last: int) -> Iterator[resources_pb2.StepRecord]:
    token = ""
    while True:
        request = run_service_pb2.QuerySeriesRequest(
            name=run, branch=branch, first_step=first, last_step=last, page_size=_PAGE, page_token=token
        )
        page = client.call("QuerySeries", request, _SECONDS)
        yield from page.records
        token = page.next_page_token
        if not token:
            return


def _first(client: Client, run: str, branch: int) -> int:
    """The first step of a branch; far beyond any if it has none."""
    request = run_service_pb2.QuerySeriesRequest(name=run, branch=branch, page_size=1)
    records = client.call("QuerySeries", request, _SECONDS).records
    return int(records[0].step) if records else 2**62
