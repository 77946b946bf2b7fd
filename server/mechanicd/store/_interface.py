"""What the service needs from a store. Every method may block, so all run on the store's own thread."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from mechanicd.access import Token
from mechanicd.runs import EventRow, RunRow, RunStats, SessionRow, StepRow, record_layout
from mechanicd.store._clock import Clock
from mechanicd.store._errors import StoreDamaged
from mechanicd.store._forking import Forking
from mechanicd.store._model import Claim, Commit, Fork, Release, Rename, Rewind, SummaryRequest
from mechanicd.store._summary import Buckets
from mechanicd.tuner import TunerConfig

_PORTION: Final = 500


class Store(Protocol):
    """Runs, their tuner states, and the history of their steps. All changes are durable when the call returns.

    Raises (any method): StoreUnavailable, where the database can't be read or written now, StoreNotWritable, where it is
    read-only, and StoreDamaged, where what it holds can't be read any more; nothing changed then.

    Attributes:
        clock: what time it is, for all who use this store; any thread may read it.
    """

    clock: Clock

    def create(self, project: str, run: str, config: TunerConfig, state: bytes, scale: tuple[float, ...], time: int) -> RunRow:
        """A new run without a session. Raises RunExists."""

    def get(self, project: str, run: str) -> RunRow | None:
        """The run with this name, or None."""

    def by_session(self, session: int) -> tuple[RunRow, SessionRow] | None:
        """The run that this session holds or once held, with the session; the run's row says who holds it now."""

    def list_runs(self, project: str | None, after: tuple[str, str] | None, limit: int) -> Sequence[RunRow]:
        """Runs in the order of (project, run), beginning after the given pair; see `rows` about damaged ones."""

    def snapshot(self) -> AbstractContextManager[None]:
        """What is read inside it is as of one moment, also beside a server that writes."""

    def pulse(self) -> dict[int, int]:
        """The revision of every run by id. Watchers poll this, then read only the rows that changed."""

    def rows(self, ids: Iterable[int], *, states: bool = True) -> Sequence[RunRow]:
        """The runs with these ids, in order of id. Deleted ones are missing; of damaged ones there is what can be read
        (`RunRow.damaged`). Every method that gives a single run raises StoreDamaged instead.

        Args:
            states: False leaves `state` empty: with many scale groups it is by far the largest part of a row.
        """

    def events(self, run_id: int) -> Sequence[EventRow]:
        """A run's last 1,000 events, oldest first."""

    def set_labels(self, run_id: int, labels: dict[str, str]) -> None:
        """Replaces all labels."""

    def archive(self, run_id: int, time: int, event: EventRow) -> None:
        """Archives a run at a time (ns since 1970); 0 restores it. A new session restores it too."""

    def rename(self, rename: Rename) -> RunRow:
        """Gives a run another name, and remembers the one that it had.

        Raises RunExists, and OwnershipLost where a session or a server took hold of the run meanwhile.
        """

    def renamed(self, project: str, run: str) -> RunRow | None:
        """The run that had this name before it was renamed; None if there is none, or another run has taken the name."""

    def fenced_by_rename(self, session: int) -> bool:
        """Whether this session lost its run because the run was renamed."""

    def delete(self, run_id: int, expected_epoch: int | None = None) -> None:
        """Deletes a run and its history. Raises OwnershipLost if it has another epoch than expected (None: any)."""

    def deleted(self, session: int) -> tuple[str, str] | None:
        """The project and the name of the deleted run that this session held, or None."""

    def claim(self, claim: Claim) -> RunRow:
        """Gives the run to a new session. Raises OwnershipLost."""

    def take_over(
        self,
        run_id: int,
        expected_epoch: int,
        session: int,
        stats: RunStats | None = None,
        events: Sequence[EventRow] = (),
    ) -> RunRow:
        """Starts a new epoch for the session that holds the run, which voids other servers' commits. Raises OwnershipLost."""

    def rewind(self, rewind: Rewind) -> RunRow:
        """Rewinds a run to a step; the later steps become branch `rewinds + 1`.

        Raises OwnershipLost, where a session or a server took hold of it meanwhile, or holds it and `rewind.session` is 0.
        """

    def fork(self, fork: Fork) -> RunRow:
        """A new run without a session, with the source's config, labels and history up to a step. The source is unchanged.

        Raises RunExists, and OwnershipLost where the other run began a new epoch meanwhile.
        """

    def forking(self, fork: Fork) -> Forking:
        """The same in portions: each call of `Forking.more` does one. Until the last, the new run can't be seen."""

    def commit(self, commits: Sequence[Commit], releases: Sequence[Release]) -> list[bool]:
        """Writes everything in one transaction. Returns, for each commit, whether the writer still owned the run."""

    def steps(self, run: RunRow, branch: int, first: int, last: int, limit: int) -> list[StepRow]:
        """Steps first…last in order, at most `limit` of them. Raises StoreDamaged at the first that can't be read."""

    def records(self, run: RunRow, branch: int, first: int, last: int, limit: int) -> bytes:
        """The same steps, packed; see `mechanicd.runs.record_dtype`."""

    def summary(self, run: RunRow, branch: int, first: int, last: int, most: int) -> Buckets:
        """Min, max, last and count over first…last in about `most` buckets; one bucket per step if that is few enough.

        Steps that can't be read are missing.
        """

    def summaries(self, requests: Sequence[SummaryRequest]) -> list[Buckets]:
        """`summary` of many runs, from one snapshot."""

    @property
    def unfolded(self) -> int:
        """About how many bytes of history are waiting to be folded."""

    def fold(self, most_runs: int = 16) -> bool:
        """Folds the journal of some runs into per-run chunks. Returns whether there is more to do."""

    def retain(self, keep_steps: int | None, oldest: int | None, most: int = 64, held: Collection[int] = frozenset()) -> bool:
        """Deletes what is too old, a portion at a time. Returns whether there may be more.

        Args:
            keep_steps: exact steps are kept of the last `keep_steps` steps of a run; of earlier ones buckets remain.
            oldest: runs whose last step is before this time (ns since 1970) are deleted, unless a trainer still holds them: one
                that is among `held`, or that was there after this time, says its row.
            held: ids of runs that are held now, as the caller knows.
        """

    def spans(self, run: RunRow, branch: int) -> list[tuple[int, int]]:
        """Where a branch has steps: the first and the last that each of its pieces may have. Elsewhere it has none."""

    def branches(self, run: RunRow) -> list[int]:
        """The branches of abandoned steps that a run has, in order. A rewind to a step without any after it leaves none."""

    def tokens(self) -> list[Token]:
        """Every token, also revoked and expired ones, the oldest first. Damaged ones are missing."""

    def damaged_tokens(self) -> list[str]:
        """The ids of tokens whose rows can't be read any more."""

    def add_token(self, token: Token) -> None:
        """Adds a token."""

    def revoke_token(self, id_: str, time: int) -> Token | None:
        """The token with this id, revoked at a time (ns since 1970), or earlier already; None if there is none."""

    def damage(self) -> list[tuple[str, str, str]]:
        """What can't be read any more: the full name of the run, or ""; a reason of `check`; and words."""

    def ping(self) -> None:
        """Returns if the database answers. `clock` follows that of the database from here on."""

    def interrupt(self) -> None:
        """Called from another thread: makes a call that waits for ever fail soon, if the engine can do that."""

    def integrity(self) -> list[str]:
        """Problems that the engine itself finds in the database."""

    def vacuum(self) -> None:
        """Returns unused space to the disk."""

    def close(self) -> None:
        """Releases the database."""


def changes(store: Store, known: Mapping[int, int]) -> tuple[list[RunRow], list[int]]:
    """Rows whose revision differs from the known one (by run id), without `state`, and the ids of known runs that are gone."""
    pulse = store.pulse()
    changed = [id_ for id_, revision in pulse.items() if known.get(id_) != revision]
    return list(store.rows(changed, states=False)) if changed else [], [id_ for id_ in known if id_ not in pulse]


def every_run(store: Store) -> Iterator[RunRow]:
    """All runs in the order of their ids. By ids, which are never used again, so that no damaged name hides another run."""
    ids = sorted(store.pulse())
    for begin in range(0, len(ids), _PORTION):
        yield from store.rows(ids[begin : begin + _PORTION])


def saved_records(store: Store, run: RunRow, branch: int, first: int, last: int, limit: int) -> Iterator[bytes]:
    """Every step first…last that can be read, packed, a portion of at most `limit` at a time.

    Raises:
        StoreDamaged: after the last of them, if others can't be read.
    """
    width, lost = record_layout(len(run.config.scale_groups)).size, None
    while first <= last:
        try:
            portion = store.records(run, branch, first, last, limit)
        except StoreDamaged as error:
            if error.last_step < first:  # not about steps: of the database's own pages
                raise
            lost = lost or error
            if error.first_step > first:
                yield from saved_records(store, run, branch, first, error.first_step - 1, limit)
            first = error.last_step + 1
            continue
        if portion:
            yield portion
        if len(portion) < limit * width:
            break
        first = int.from_bytes(portion[-width:][:8], "little") + 1  # a record begins with its step
    if lost is not None:
        raise lost
