"""What the service asks of a store. Every method may block: it runs on the store's own thread."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from mechanicd.store._model import Claim, Commit, Release, RunRow, StepRow
from mechanicd.tuner import TunerConfig


class Store(Protocol):
    """Runs, their tuner states, and the history of their steps. All changes are durable when the call returns.

    Raises (any method): StoreError, where the database can't be read or written; nothing was changed then.
    """

    def create(self, project: str, run: str, config: TunerConfig, state: bytes, scale: tuple[float, ...], time: int) -> RunRow:
        """A new run without a session. Raises RunExists."""

    def get(self, project: str, run: str) -> RunRow | None:
        """The run of this name."""

    def by_session(self, session: int) -> tuple[RunRow, int] | None:
        """The run that this session holds or once held, and the session that holds it now."""

    def list_runs(self, project: str | None, after: tuple[str, str] | None, limit: int) -> Sequence[RunRow]:
        """Runs in the order of (project, run), beginning after the given pair."""

    def set_labels(self, run_id: int, labels: dict[str, str]) -> None:
        """Replaces all labels."""

    def delete(self, run_id: int) -> None:
        """Deletes a run and its history."""

    def claim(self, claim: Claim) -> RunRow:
        """Gives the run to a new session. Raises OwnershipLost."""

    def commit(self, commits: Sequence[Commit], releases: Sequence[Release]) -> list[bool]:
        """Writes all in one transaction; for each commit, whether the run was still the writer's."""

    def steps(self, run: RunRow, branch: int, first: int, last: int, limit: int) -> Iterator[StepRow]:
        """Steps first…last in order, at most `limit` of them."""

    def close(self) -> None:
        """Releases the database."""
