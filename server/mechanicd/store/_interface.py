"""What the service asks of a store. Every method may block: it runs on the store's own thread."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from mechanicd.runs import EventRow, RunRow, RunStats, SessionRow, StepRow
from mechanicd.store._model import Claim, Commit, Fork, Release, Rewind, SummaryRequest
from mechanicd.store._summary import Buckets
from mechanicd.tuner import TunerConfig


class Store(Protocol):
    """Runs, their tuner states, and the history of their steps. All changes are durable when the call returns.

    Raises (any method): StoreUnavailable, where the database can't be read or written now, and StoreNotWritable, where it is
    read-only; nothing changed then.
    """

    def create(self, project: str, run: str, config: TunerConfig, state: bytes, scale: tuple[float, ...], time: int) -> RunRow:
        """A new run without a session. Raises RunExists."""

    def get(self, project: str, run: str) -> RunRow | None:
        """The run of this name."""

    def by_session(self, session: int) -> tuple[RunRow, SessionRow] | None:
        """The run that this session holds or once held, and the session; the run's row says who holds it now."""

    def list_runs(self, project: str | None, after: tuple[str, str] | None, limit: int) -> Sequence[RunRow]:
        """Runs in the order of (project, run), beginning after the given pair."""

    def pulse(self) -> dict[int, int]:
        """The id of every run with its revision: what a watcher asks often, to read the rows that changed."""

    def rows(self, ids: Iterable[int]) -> Sequence[RunRow]:
        """The runs of these ids in their order; those that are gone are missing."""

    def events(self, run_id: int) -> Sequence[EventRow]:
        """What happened to a run, the oldest first; the last 1,000."""

    def set_labels(self, run_id: int, labels: dict[str, str]) -> None:
        """Replaces all labels."""

    def delete(self, run_id: int) -> None:
        """Deletes a run and its history."""

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
        """The next epoch for the session that holds the run: another server's commits count no more. Raises OwnershipLost."""

    def rewind(self, rewind: Rewind) -> RunRow:
        """Takes a run back to a step; the steps above it become branch `rewinds + 1`.

        Raises OwnershipLost, where a session or a server took hold of it meanwhile, or holds it and `rewind.session` is 0.
        """

    def fork(self, fork: Fork) -> RunRow:
        """A new run without a session, with the other one's config, labels, and history up to a step; the other stays as it is.

        Raises RunExists, and OwnershipLost where the other run began a new epoch meanwhile.
        """

    def commit(self, commits: Sequence[Commit], releases: Sequence[Release]) -> list[bool]:
        """Writes all in one transaction; for each commit, whether the run was still the writer's."""

    def steps(self, run: RunRow, branch: int, first: int, last: int, limit: int) -> list[StepRow]:
        """Steps first…last in order, at most `limit` of them."""

    def summary(self, run: RunRow, branch: int, first: int, last: int, most: int) -> Buckets:
        """Min, max, last and count over first…last in about `most` buckets or fewer; a bucket a step where that is enough."""

    def summaries(self, requests: Sequence[SummaryRequest]) -> list[Buckets]:
        """`summary` of many runs, as of one moment."""

    @property
    def unfolded(self) -> int:
        """About how many bytes of history wait to be folded."""

    def fold(self, most_runs: int = 16) -> bool:
        """Folds the history of some runs from the journal of flushes into chunks of one run; whether there is more to do."""

    def retain(self, keep_steps: int | None, oldest: int | None, most: int = 64) -> bool:
        """Gives up what is too old, a portion at a time; whether there may be more.

        Args:
            keep_steps: exact steps are kept of the last `keep_steps` steps of a run; of earlier ones buckets remain.
            oldest: runs whose last step is before this time (ns since 1970) are deleted.
        """

    def ping(self) -> None:
        """Returns where the database answers."""

    def integrity(self) -> list[str]:
        """What the engine itself finds wrong with the database."""

    def vacuum(self) -> None:
        """Gives unused room back to the disk."""

    def close(self) -> None:
        """Releases the database."""


def changes(store: Store, known: Mapping[int, int]) -> tuple[list[RunRow], list[int]]:
    """Rows whose revision is other than known by run id, and the ids of known runs that are gone."""
    pulse = store.pulse()
    changed = [id_ for id_, revision in pulse.items() if known.get(id_) != revision]
    return list(store.rows(changed)) if changed else [], [id_ for id_ in known if id_ not in pulse]
