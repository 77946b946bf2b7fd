"""Brings out of a damaged store all that is whole, into an empty one, and says what it left.

Whatever has a checksum must have it right; what has none (it was written before schema 5) must have its form. Of a chunk of
which a part is damaged, the other records are taken. Summaries are made anew, and so is a tuner's state that is damaged where
the history can be replayed up to it.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final, NamedTuple

from mechanicd.runs import RunRow, StepOutcome, session_key, unpack
from mechanicd.store import _chunks, _history, _journal, _pyramid, _rows, _sums, _tokens
from mechanicd.store._errors import SchemaTooOld, StoreDamaged, StoreNotWritable, StoreRejected
from mechanicd.store._interface import saved_records
from mechanicd.store._journal import Segment
from mechanicd.store._migrations import SCHEMA_VERSION
from mechanicd.store._open import file_of, open_store
from mechanicd.store._sql import TABLES, Database, floats_out, insert
from mechanicd.store._store import SQLStore
from mechanicd.store._wreck import PostgresWreck, Row, SQLiteWreck, Wreck
from mechanicd.tuner import Reductions, ReductionsError, Tuner, TunerState

_OLDEST: Final = 4
_WITH_TOKENS: Final = 5
_PORTION: Final = 100
_ALL: Final = 2**62


class Left(NamedTuple):
    """Something that could not be brought out: of which run (its full name, or ""), and what."""

    run: str
    message: str


def salvage(
    url: str, target: SQLStore, left: Callable[[Left], None], progress: Callable[[int, int], None] = lambda done, all_: None
) -> int:
    """Brings all that is whole from the store at a URL into an empty store.

    Args:
        left: called with each thing that is not brought out, or not as it was.
        progress: called with (rows looked at, rows in all, as far as that is known).

    Returns:
        How many runs were brought out.

    Raises:
        StoreNotWritable: the target has runs already.
        SchemaTooOld: the store is of a version before 0.2.
        StoreError: nothing at all can be read, or the target can't be written; what it has by then is not complete.
    """
    with target.reading() as db:
        if db.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is not None:
            raise StoreNotWritable("the target store already has runs; use an empty store or a new file")
    path = file_of(url)
    if path is not None:
        with closing(SQLiteWreck(path)) as wreck:
            return _Salvage(wreck, target, left, progress).run()
    with closing(open_store(url, readonly=True)) as source:
        return _Salvage(PostgresWreck(source, SCHEMA_VERSION), target, left, progress).run()


class _Salvage:
    def __init__(
        self, wreck: Wreck, target: SQLStore, left: Callable[[Left], None], progress: Callable[[int, int], None]
    ) -> None:
        if wreck.version < _OLDEST:
            raise SchemaTooOld(
                f"the store has schema version {wreck.version}; start a server on a copy of it once, to migrate it"
            )
        self._wreck = wreck
        self._target = target
        self._left = left
        self._progress = progress
        self._runs: dict[int, RunRow] = {}
        self._done = 0
        self._all = sum(wreck.count(table) for table in TABLES if table != "tiers")

    def run(self) -> int:
        self._write("runs", self._run_rows())
        self._write("sessions", self._rows("sessions", "sessions"))
        self._write("former_names", self._rows("former_names", "former names"))
        self._write("events", self._rows("events", "events"))
        self._chunks()
        self._write("journal", self._journal())
        if self._wreck.version >= _WITH_TOKENS:
            self._tokens()
        with self._target.transaction() as db:
            self._target.count_on(db)
        for run_id, run in self._runs.items():
            self._state(run_id, run)
        return len(self._runs)

    def _tokens(self) -> None:
        for found in self._read(_tokens.TABLE, "tokens"):
            row = {**dict.fromkeys(_tokens.COLUMNS), **found}
            if _tokens.token_in(row) is None:
                self._left(Left("", f"token {_tokens.id_in(row)}, whose row is damaged; make another"))
                continue
            with self._target.transaction() as db:
                _tokens.put(db, row)

    # --- rows --------------------------------------------------------------------------------------------------------

    def _read(self, table: str, what: str) -> Iterator[Row]:
        """The rows of a table that can be read."""
        lost = 0
        for row in self._wreck.rows(table):
            self._done += 1
            if self._done % _PORTION == 0:
                self._progress(self._done, max(self._all, self._done))
            if row is None:
                lost += 1
            else:
                yield row
        if lost:
            self._left(Left("", f"rows of the table {table} ({what}) in {lost} places that the database can't read"))

    def _write(self, table: str, rows: Iterator[Row]) -> None:
        """Each row that the target takes."""
        portion: list[Row] = []
        for row in rows:
            portion.append(row)
            if len(portion) == _PORTION:
                self._insert(table, portion)
                portion = []
        self._insert(table, portion)

    def _insert(self, table: str, rows: list[Row]) -> None:
        if not rows:
            return
        try:
            with self._target.transaction() as db:
                db.executemany(insert(table), rows)
        except StoreRejected as error:
            if len(rows) > 1:
                for row in rows:
                    self._insert(table, [row])
                return
            if table == "runs":
                del self._runs[rows[0]["id"]]
            self._left(Left("", f"a row of the table {table}: {error}"))

    def _run_rows(self) -> Iterator[Row]:
        for values in self._read("runs", "runs"):
            row = {**dict.fromkeys(TABLES["runs"]), **values}
            if not row["project"]:  # a fork that was not complete
                continue
            if self._wreck.version < 5 and row["session"]:
                row["session"] = session_key(row["session"])
            found = _rows.listed_in([row[column] for column in TABLES["runs"]])
            name = f"projects/{found.project}/runs/{found.run}"
            if found.damaged:
                self._left(Left(name, found.damaged.partition(";")[0]))
                if not _has_config(row["config"]):
                    self._left(Left(name, "all of it: without its config, its history can't be read"))
                    continue
                row |= _rows.again(found)
            elif wrong := _sums.wrong(row):
                covered = ", ".join(_sums.OF_ROW if "row_sum" in wrong else _sums.OF_STEPS)
                self._left(Left(name, f"its row does not have its checksum, and is taken as it is; it has {covered}"))
            row["folded_step"] = max(0, row["folded_step"] or 0)
            self._runs[found.id] = found
            yield _sums.sealed_run(row)

    def _rows(self, table: str, what: str) -> Iterator[Row]:
        wrong: dict[int, int] = {}
        for values in self._read(table, what):
            row = {**dict.fromkeys(TABLES[table]), **values}
            right = row["checksum"] is None or row["checksum"] == _sums.of(row[column] for column in _sums.covered(table))
            if self._wreck.version < 5 and row.get("session"):
                row["session"] = session_key(row["session"])
            if right and row["run_id"] in self._runs:
                yield _sums.sealed(table, row)
            else:
                wrong[row["run_id"]] = wrong.get(row["run_id"], 0) + 1
        for run_id in [run_id for run_id in wrong if run_id in self._runs]:
            self._left(Left(self._name(run_id), f"{wrong.pop(run_id)} {what}, which do not have their checksum"))
        if wrong:
            self._left(Left("", f"{sum(wrong.values())} {what} of runs whose rows are not there"))

    # --- history -----------------------------------------------------------------------------------------------------

    def _chunks(self) -> None:
        strays: set[int] = set()
        for values in self._read("chunks", "history"):
            run_id, branch, number = int(values["run_id"]), int(values["branch"]), int(values["number"])
            run = self._runs.get(run_id)
            if run is None:
                strays.add(run_id)
                continue
            groups = len(run.config.scale_groups)
            for found in _chunks.damage_of(groups, values):
                self._left(Left(self._name(run_id), found.message))
            chunk = _chunks.chunk_in(run_id, groups, values)
            if chunk is None:
                low, high = _chunks.span_of(groups, number)
                self._left(Left(self._name(run_id), f"steps {low} to {high} of branch {branch}"))
                continue
            made = _history.chunk_values(run_id, groups, branch, number, chunk.fine, chunk.records, thinned=chunk.thinned)
            self._insert("chunks", [made])
        if strays:
            self._left(Left("", f"the history of {len(strays)} runs whose rows are not there"))
        for run_id, run in self._runs.items():
            for branch in (0, *self._target.branches(run)):
                with self._target.transaction() as db:
                    _pyramid.rise(db, run_id, len(run.config.scale_groups), branch)

    def _journal(self) -> Iterator[Row]:
        for values in self._read("journal", "the newest steps"):
            data = bytes(values["data"])
            if self._wreck.version < 5:
                data = _journal.of_schema_4(data)
            whole: list[Segment] = []
            try:
                whole.extend(segment for segment in _journal.unpack(data) if segment.run_id in self._runs)
            except StoreDamaged as error:  # after those that are whole
                self._left(Left("", f"steps in the journal: {error}"))
            if whole:
                yield {"id": values["id"], "data": _journal.pack(whole)}

    # --- the tuner's state -------------------------------------------------------------------------------------------

    def _state(self, run_id: int, run: RunRow) -> None:
        """Replays the history where the state is damaged."""
        try:
            state: TunerState | None = TunerState.from_bytes(run.state, run.config)
        except ValueError:
            state = None
        if state is not None and (state.step, state.scale) == (run.last_step, run.scale):
            return
        replayed = self._replayed(run)
        name = self._name(run_id)
        if replayed is None or (state is not None and replayed.step != run.last_step):
            self._left(Left(name, "the tuner's state; its trainer needs a checkpoint to go on"))
            return
        self._left(Left(name, f"the tuner's state, which was replayed from the history up to step {replayed.step}"))
        with self._target.transaction() as db:
            _put(db, run_id, replayed)

    def _replayed(self, run: RunRow) -> TunerState | None:
        """The state after the run's last step; None if steps are missing or follow an adopted state."""
        tuner, state, groups = Tuner(run.config), TunerState.initial(run.config), len(run.config.scale_groups)
        try:
            for portion in saved_records(self._target, run, 0, 1, _ALL, 1000):
                for step in unpack(groups, portion):
                    if step.step != state.step + 1:
                        return None
                    if step.outcome != StepOutcome.TUNED:
                        state = tuner.hold(state)
                        continue
                    reductions = map(Reductions, step.delta_dot_g, step.delta_dot_x, step.g_norm_sq, step.x_norm_sq)
                    state = tuner.update(state, list(reductions))
                    if state.scale != step.scale:
                        return None
        except (StoreDamaged, ReductionsError):
            return None
        return state if state.step == run.last_step else None

    def _name(self, run_id: int) -> str:
        run = self._runs.get(run_id)
        return "" if run is None else f"projects/{run.project}/runs/{run.run}"


def _has_config(text: str) -> bool:
    try:
        _rows.config_in(text)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _put(db: Database, run_id: int, state: TunerState) -> None:
    sealing = _sums.before(db, run_id)
    db.execute(
        "UPDATE runs SET state = :state, scale = :scale, last_step = :step WHERE id = :id",
        {"state": state.to_bytes(), "scale": floats_out(state.scale), "step": state.step, "id": run_id},
    )
    _sums.after(db, run_id, sealing)
