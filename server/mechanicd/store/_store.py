"""The store over SQL: everything that both engines do the same way. An engine adds its connection, types and maintenance."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Final

from mechanicd.access import Token
from mechanicd.runs import EventRow, RunRow, RunStats, RunStatus, SessionRow, StepRow, unpack
from mechanicd.store import _chunks, _damage, _deletions, _history, _journal, _lineage, _rows, _summary, _sums, _tokens, _zoom
from mechanicd.store._clock import LATEST, Clock, steady_ns
from mechanicd.store._errors import OwnershipLost, RunExists, StoreDamaged
from mechanicd.store._forking import NAMED, Forking
from mechanicd.store._journal import Segment
from mechanicd.store._model import Claim, Commit, Fork, Release, Rename, Rewind, SummaryRequest
from mechanicd.store._sql import TABLES, Database, floats_out, insert
from mechanicd.tuner import TunerConfig

_NEW: Final = tuple(column for column in TABLES["runs"] if column != "id")
_PORTION: Final = 500
_PULSE: Final = f"SELECT id, revision FROM runs WHERE {NAMED}"
_MOST_EVENTS: Final = 1000
_FOLD_BYTES: Final = 2**21
"""About how much of the journal is folded at a time: a commit waits for it."""


class SQLStore(ABC):
    """Implements `Store`. Use it from one thread at a time."""

    def __init__(self) -> None:
        self.unfolded = 0
        self.clock = Clock()
        self._journal = _journal.Index()
        self._folding: tuple[list[int], dict[int, list[Segment]]] | None = None
        self._snapshot: Database | None = None

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Database]:
        """All or nothing, and durable at its end. Raises StoreUnavailable."""

    @abstractmethod
    def at_once(self) -> AbstractContextManager[Database]:
        """Like `_write`, for a single statement. On a remote database a server that freezes in the middle of it then
        holds no lock that other servers wait for."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Database]:
        """A read-only transaction: one consistent snapshot, inside `snapshot` that one. Raises StoreUnavailable."""

    @abstractmethod
    def count_on(self, db: Database) -> None:
        """Call it after copying ids from another store: new ids continue after them."""

    @abstractmethod
    def time(self, db: Database) -> int:
        """What the clock says now that `clock` stands for, ns since 1970."""

    @abstractmethod
    def has_table(self, db: Database, name: str) -> bool:
        """Whether there is this table. Those beside the schema are missing in a store that only older servers wrote."""

    @abstractmethod
    def integrity(self) -> list[str]:
        """See `Store.integrity`."""

    @abstractmethod
    def vacuum(self) -> None:
        """See `Store.vacuum`."""

    @abstractmethod
    def interrupt(self) -> None:
        """See `Store.interrupt`."""

    @abstractmethod
    def close(self) -> None:
        """See `Store.close`."""

    @abstractmethod
    def _folding_alone(self) -> bool:
        """Takes the folding lock if no other server holds it. Returns whether it did. `_folded` releases it."""

    @abstractmethod
    def _folded(self) -> None:
        """Releases the folding lock."""

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self.reading() as db:
            self._snapshot = db
            try:
                yield
            finally:
                self._snapshot = None

    # --- runs --------------------------------------------------------------------------------------------------------

    def create(self, project: str, run: str, config: TunerConfig, state: bytes, scale: tuple[float, ...], time: int) -> RunRow:
        values: dict[str, Any] = dict.fromkeys(_NEW, 0) | {
            "project": project,
            "run": run,
            "labels": "{}",
            "config": _rows.config_out(config),
            "status": RunStatus.RUNNING,
            "status_message": "",
            "command": "",
            "vitals": "",
            "state": state,
            "scale": floats_out(scale),
            "create_time": time,
        }
        with self.transaction() as db:
            statement = f"{insert('runs', _NEW)} ON CONFLICT (project, run) DO NOTHING RETURNING {_rows.RUN}"
            made = db.execute(statement, _sums.sealed_run(values)).fetchone()
            if made is None:
                raise RunExists(f"projects/{project}/runs/{run} exists")
            _lineage.take_name(db, project, run)
            return _rows.run_in(made)

    def get(self, project: str, run: str) -> RunRow | None:
        with self.reading() as db:
            row = db.execute(
                f"SELECT {_rows.RUN} FROM runs WHERE project = :project AND run = :run", {"project": project, "run": run}
            ).fetchone()
            return None if row is None else _rows.run_in(row)

    def by_session(self, session: int) -> tuple[RunRow, SessionRow] | None:
        with self.reading() as db:
            row = db.execute(
                f"SELECT sessions.session, sessions.run_id, sessions.after_step, sessions.open_time, {_rows.RUN}"
                " FROM sessions JOIN runs ON runs.id = sessions.run_id WHERE sessions.session = :session",
                {"session": session},
            ).fetchone()
            if row is None:
                return None
            found = SessionRow(session=row[0], run_id=row[1], after_step=row[2], open_time=row[3])
            return _rows.run_in(row[4:]), found

    def list_runs(self, project: str | None, after: tuple[str, str] | None, limit: int) -> list[RunRow]:
        begin = after or ("", "")
        where = f"(project, run) > (:p, :r) AND {NAMED}" + ("" if project is None else " AND project = :project")
        with self.reading() as db:
            rows = db.execute(
                f"SELECT {_rows.RUN} FROM runs WHERE {where} ORDER BY project, run LIMIT :limit",
                {"p": begin[0], "r": begin[1], "limit": limit} | ({} if project is None else {"project": project}),
            ).fetchall()
            return list(_rows.readable(rows))

    def pulse(self) -> dict[int, int]:
        with self.reading() as db:
            return {int(id_): int(revision) for id_, revision in db.execute(_PULSE).fetchall()}

    def rows(self, ids: Iterable[int], *, states: bool = True) -> list[RunRow]:
        wanted = sorted({int(id_) for id_ in ids})
        found: list[RunRow] = []
        columns = _rows.RUN if states else _rows.WITHOUT_STATE
        with self.reading() as db:
            for begin in range(0, len(wanted), _PORTION):
                listed = ", ".join(map(str, wanted[begin : begin + _PORTION]))
                rows = db.execute(f"SELECT {columns} FROM runs WHERE id IN ({listed}) ORDER BY id").fetchall()
                found += _rows.readable(rows)
        return found

    def events(self, run_id: int) -> list[EventRow]:
        with self.reading() as db:
            rows = db.execute(
                f"SELECT time, step, kind, message FROM events WHERE run_id = :id ORDER BY id DESC LIMIT {_MOST_EVENTS}",
                {"id": run_id},
            ).fetchall()
            return [EventRow(*row) for row in reversed(rows)]

    def set_labels(self, run_id: int, labels: dict[str, str]) -> None:
        with self.transaction() as db:
            sealing = _sums.before(db, run_id)
            db.execute(
                "UPDATE runs SET labels = :labels, revision = revision + 1 WHERE id = :id",
                {"labels": json.dumps(labels), "id": run_id},
            )
            _sums.after(db, run_id, sealing)

    def archive(self, run_id: int, time: int, event: EventRow) -> None:
        with self.transaction() as db:
            sealing = _sums.before(db, run_id)
            moved = db.execute(
                "UPDATE runs SET archive_time = :time, revision = revision + 1 WHERE id = :id", {"time": time, "id": run_id}
            )
            if moved.rowcount:  # otherwise it has been deleted
                _sums.after(db, run_id, sealing)
                _rows.note(db, run_id, [event])

    def rename(self, rename: Rename) -> RunRow:
        with self.transaction() as db:
            before = _rows.held(db, rename.run_id, rename.expected_epoch)
            self._fold_one(db, before)
            sealing = _sums.before(db, before.id)
            _lineage.rename(db, before, rename)
            _sums.after(db, before.id, sealing)
            _rows.note(db, before.id, rename.events)
            return _rows.by_id(db, before.id)

    def renamed(self, project: str, run: str) -> RunRow | None:
        with self.reading() as db:
            row = db.execute(
                f"SELECT {_rows.RUN} FROM former_names JOIN runs ON runs.id = former_names.run_id"
                " WHERE former_names.project = :project AND former_names.run = :run",
                {"project": project, "run": run},
            ).fetchone()
            return None if row is None else _rows.run_in(row)

    def fenced_by_rename(self, session: int) -> bool:
        with self.reading() as db:
            found = db.execute("SELECT 1 FROM former_names WHERE session = :session", {"session": session}).fetchone()
            return found is not None

    def delete(self, run_id: int, expected_epoch: int | None = None) -> None:
        with self.transaction() as db:
            if expected_epoch is not None:
                _rows.held(db, run_id, expected_epoch)
            _deletions.delete(db, [run_id])

    def deleted(self, session: int) -> tuple[str, str] | None:
        with self.reading() as db:
            return _deletions.held_by(db, session)

    # --- who may come in -----------------------------------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        return self._tokens().tokens

    def damaged_tokens(self) -> list[str]:
        return self._tokens().damaged

    def _tokens(self) -> _tokens.Found:
        with self.reading() as db:
            return _tokens.read(db) if self.has_table(db, _tokens.TABLE) else _tokens.Found([], [])

    def add_token(self, token: Token) -> None:
        with self.transaction() as db:
            _tokens.put(db, _tokens.row_of(token))

    def revoke_token(self, id_: str, time: int) -> Token | None:
        with self.transaction() as db:
            token = next((each for each in _tokens.read(db).tokens if each.id == id_), None)
            if token is not None and not token.revoke_time:
                token = replace(token, revoke_time=time)
                _tokens.put(db, _tokens.row_of(token))
            return token

    # --- who holds a run ---------------------------------------------------------------------------------------------

    def claim(self, claim: Claim) -> RunRow:
        with self.transaction() as db:
            before = _rows.held(db, claim.run_id, claim.expected_epoch)
            self._fold_one(db, before)
            # Which of a run's sessions is newer is told by when they were opened, whatever clocks their servers had.
            opened = min(max(claim.time, before.open_time + 1), LATEST)
            rewinds, sealing = before.rewinds, _sums.before(db, before.id)
            if claim.after_step < before.last_step:
                rewinds += 1
                _history.branch_off(db, before.id, len(before.config.scale_groups), claim.after_step, rewinds)
            db.execute(
                "UPDATE runs SET epoch = epoch + 1, session_count = session_count + 1, session = :session,"
                " last_step = :after_step, folded_step = :after_step, state = :state, scale = :scale, labels = :labels,"
                " status = :status, status_message = '', open_time = :time, rewinds = :rewinds, command = :command,"
                " vitals = :vitals, archive_time = 0, revision = revision + 1 WHERE id = :id",
                {
                    "id": claim.run_id,
                    "session": claim.session,
                    "after_step": claim.after_step,
                    "state": claim.state,
                    "scale": floats_out(claim.scale),
                    "labels": json.dumps(claim.labels),
                    "status": RunStatus.RUNNING,
                    "time": opened,
                    "rewinds": rewinds,
                    "command": claim.command,
                    "vitals": claim.stats.to_text(),
                },
            )
            _sums.after(db, before.id, sealing)
            session = {"session": claim.session, "run_id": claim.run_id, "after_step": claim.after_step, "open_time": opened}
            db.execute(insert("sessions"), _sums.sealed("sessions", session))
            _rows.note(db, claim.run_id, claim.events)
            return _rows.by_id(db, claim.run_id)

    def take_over(
        self,
        run_id: int,
        expected_epoch: int,
        session: int,
        stats: RunStats | None = None,
        events: Sequence[EventRow] = (),
    ) -> RunRow:
        with self.transaction() as db:
            before = _rows.held(db, run_id, expected_epoch)
            if before.session != session:
                raise OwnershipLost(f"projects/{before.project}/runs/{before.run} has another session now")
            self._fold_one(db, before)
            sealing = _sums.before(db, run_id)
            db.execute(
                "UPDATE runs SET epoch = epoch + 1, vitals = :vitals, revision = revision + 1 WHERE id = :id",
                {"id": run_id, "vitals": (stats or before.stats).to_text()},
            )
            _sums.after(db, run_id, sealing)
            _rows.note(db, run_id, events)
            return _rows.by_id(db, run_id)

    def rewind(self, rewind: Rewind) -> RunRow:
        with self.transaction() as db:
            before = _rows.held(db, rewind.run_id, rewind.expected_epoch)
            self._fold_one(db, before)
            sealing = _sums.before(db, before.id)
            _lineage.rewind(db, before, rewind)
            _sums.after(db, before.id, sealing)
            _rows.note(db, before.id, rewind.events)
            return _rows.by_id(db, before.id)

    def fork(self, fork: Fork) -> RunRow:
        forking = self.forking(fork)
        while (made := forking.more()) is None:
            pass
        return made

    def forking(self, fork: Fork) -> Forking:
        return Forking(self.transaction, self._journal, fork)

    def commit(self, commits: Sequence[Commit], releases: Sequence[Release]) -> list[bool]:
        kept: list[bool] = []
        rows = [_rows.moved(commit) for commit in commits]
        alone = not releases and not any(commit.events for commit in commits)
        with self.at_once() if alone else self.transaction() as db:
            moved = db.advance(rows) if rows else set()
            for row, commit in zip(rows, commits, strict=True):
                kept.append(row["id"] in moved)
                if kept[-1]:
                    _rows.note(db, commit.run_id, commit.events)
                moved.discard(row["id"])
                self.unfolded += len(row["segment"])
            for release in releases:
                sealing = _sums.before(db, release.run_id)
                released = db.execute(
                    "UPDATE runs SET session = :successor, status = :status, status_message = :message, revision = revision + 1"
                    " WHERE id = :id AND epoch = :epoch AND session = :session",
                    {
                        "id": release.run_id,
                        "epoch": release.epoch,
                        "session": release.session,
                        "successor": release.successor,
                        "status": release.status,
                        "message": release.message,
                    },
                )
                if released.rowcount:
                    _sums.after(db, release.run_id, sealing)
                    _rows.note(db, release.run_id, release.events)
        return kept

    # --- history -----------------------------------------------------------------------------------------------------

    def steps(self, run: RunRow, branch: int, first: int, last: int, limit: int) -> list[StepRow]:
        groups = len(run.config.scale_groups)
        return list(unpack(groups, self.records(run, branch, first, last, limit), branch))

    def records(self, run: RunRow, branch: int, first: int, last: int, limit: int) -> bytes:
        if run.damaged:
            raise StoreDamaged(run.damaged)
        groups = len(run.config.scale_groups)
        with self.reading() as db:
            journal = self._segments(db, run.id, branch)
            return b"".join(_history.records(db, run.id, groups, branch, first, last, limit, journal))

    def summary(self, run: RunRow, branch: int, first: int, last: int, most: int) -> _summary.Buckets:
        return self.summaries([SummaryRequest(run, branch, first, last, most)])[0]

    def summaries(self, requests: Sequence[SummaryRequest]) -> list[_summary.Buckets]:
        with self.reading() as db:
            self._journal.refresh(db)
            return _zoom.summaries(db, requests, self._journal)

    def spans(self, run: RunRow, branch: int) -> list[tuple[int, int]]:
        groups = len(run.config.scale_groups)
        with self.reading() as db:
            numbers = db.execute(
                "SELECT number FROM chunks WHERE run_id = :id AND branch = :branch ORDER BY number",
                {"id": run.id, "branch": branch},
            ).fetchall()
            journal = self._segments(db, run.id, branch)
        found = [_chunks.span_of(groups, number) for (number,) in numbers]
        return found + [(segment.first_step, segment.last_step) for segment in journal]

    def branches(self, run: RunRow) -> list[int]:
        with self.reading() as db:
            found = db.execute(
                "SELECT DISTINCT branch FROM chunks WHERE run_id = :id AND branch > 0 ORDER BY branch", {"id": run.id}
            ).fetchall()
            return [int(branch) for (branch,) in found]

    def fold(self, most_runs: int = 16) -> bool:
        if self._folding is None:
            if not self._folding_alone():
                return False
            with self.reading() as db:
                self._journal.refresh(db)
            of_run = {run_id: self._journal.of(run_id) for run_id in self._journal.runs}
            self._folding, self.unfolded = (self._journal.rows, of_run), 0
        ids, found = self._folding
        try:
            with self.transaction() as db:
                chosen = _journal.portion(found, most_runs, _FOLD_BYTES)
                for run_id, count in chosen.items():
                    row = db.execute(f"SELECT {_rows.WITHOUT_STATE} FROM runs WHERE id = :id", {"id": run_id}).fetchone()
                    run = None if row is None else _rows.listed_in(row)  # None: it has been deleted
                    if run is not None and run.damaged:  # its steps stay where they are
                        self._journal.keep(run_id)
                    elif run is not None:
                        _history.fold(db, run_id, len(run.config.scale_groups), found[run_id][:count])
                done = all(count == len(found[run_id]) for run_id, count in chosen.items()) and len(chosen) == len(found)
                ids = [id_ for id_ in ids if id_ not in self._journal.kept]
                if done and ids:
                    db.executemany("DELETE FROM journal WHERE id = :id", [{"id": id_} for id_ in ids])
        except BaseException:
            self._stop_folding()
            raise
        for run_id, count in chosen.items():
            found[run_id] = found[run_id][count:]
            if not found[run_id]:
                del found[run_id]
        if done:
            self._journal.forget(ids)
            self._stop_folding()
        return not done

    def retain(self, keep_steps: int | None, oldest: int | None, most: int = 64, held: Collection[int] = frozenset()) -> bool:
        done = 0
        with self.transaction() as db:
            if keep_steps is not None:
                done += _history.thin(db, keep_steps, most)
            if oldest is not None:
                old = db.execute(
                    "SELECT id, session, status, vitals FROM runs"
                    " WHERE step_time < :oldest AND open_time < :oldest AND create_time < :oldest ORDER BY id",
                    {"oldest": oldest},
                ).fetchall()
                gone = [row[0] for row in old if row[0] not in held and not _rows.has_trainer(row, oldest)][:most]
                if gone:
                    _deletions.delete(db, gone)
                done += len(gone)
        return done > 0

    def damage(self) -> list[tuple[str, str, str]]:
        return list(self._damage())

    def _damage(self) -> Iterator[tuple[str, str, str]]:
        with self.reading() as db:
            self._journal.refresh(db)
            for id_ in sorted(self._journal.damaged):
                yield "", "DATABASE_DAMAGED", f"row {id_} of the journal can't be read to its end"
            for (run_id,) in db.execute(f"SELECT id FROM runs WHERE {NAMED} ORDER BY id").fetchall():
                row = db.execute(f"SELECT {_rows.RUN} FROM runs WHERE id = :id", {"id": run_id}).fetchone()
                if row is None:  # the engine contradicts itself
                    yield "", "DATABASE_DAMAGED", f"the run with the number {run_id} is there and is not"
                    continue
                run = _rows.listed_in(row)
                name = f"projects/{run.project}/runs/{run.run}"
                if run.damaged:
                    yield name, "HISTORY_DAMAGED", run.damaged
                for found in _damage.of_rows(db, run_id):
                    yield name, *found
                if not run.damaged:
                    for found in _chunks.damage(db, run_id, len(run.config.scale_groups)):
                        yield name, *found

    def ping(self) -> None:
        with self.reading() as db:
            db.execute("SELECT 1 FROM runs LIMIT 1").fetchone()
            self.clock.follow(*self._read_clock(db))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _read_clock(self, db: Database) -> tuple[int, int]:
        """The time, and when in between asking and being told it was that, by `steady_ns`."""
        asked = steady_ns()
        found = self.time(db)
        return found, (asked + steady_ns()) // 2

    def _stop_folding(self) -> None:
        self._folding = None
        self._folded()

    def _segments(self, db: Database, run_id: int, branch: int) -> list[Segment]:
        """The journal segments that count for a branch. Only the current history has any: a rewind folds first."""
        row = db.execute("SELECT epoch, folded_step FROM runs WHERE id = :id", {"id": run_id}).fetchone()
        if branch or row is None:
            return []
        self._journal.refresh(db)
        return _history.valid(self._journal.of(run_id), *row)

    def _fold_one(self, db: Database, row: RunRow) -> None:
        self._journal.refresh(db)
        _history.fold(db, row.id, len(row.config.scale_groups), self._journal.of(row.id))
