"""Curves: what the store has of some runs, as columns. Everything here runs on the store's thread."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from mechanicd.dashboard import _bands, _series
from mechanicd.dashboard._bucket_range import END, Zoom, fill
from mechanicd.dashboard._request import BandsRequest, HeatRequest, SeriesRequest
from mechanicd.dashboard._series import Axis
from mechanicd.runs import RunRow
from mechanicd.store import Store, SummaryRequest

SPARK_COLUMNS: Final = 60
HEAT_ROWS: Final = 512
_KNOWN: Final = 20_000

Named = tuple[str, RunRow | None]


class Curves:
    """Caches the first step of each run, which does not change while one session holds it."""

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int, int], _Span] = {}

    def series(self, store: Store, runs: Sequence[Named], request: SeriesRequest) -> dict[str, Any]:
        """The answer to POST /series."""
        answers = {name: _missing(name) for name, _ in runs}
        for name, zoom in self._zooms(store, runs, request, request.group):
            assert zoom.buckets is not None
            found = _series.columns(zoom.buckets, request.series, request.group, request.columns, zoom.axis)
            answers[name] = {
                "name": name,
                "first_step": self._span(zoom.run, request.branch).first,
                "last_step": zoom.end,
                "exact": found.exact,
                "columns": found.as_dict(),
                "missing": False,
            }
        return {"series": request.series, "x": request.x, "runs": list(answers.values())}

    def sparklines(self, store: Store, runs: Sequence[Named]) -> dict[str, Any]:
        """The answer to GET /sparklines."""
        answers: dict[str, Any] = {}
        request = SeriesRequest(runs=tuple(name for name, _ in runs), columns=SPARK_COLUMNS)
        for name, zoom in self._zooms(store, runs, request, None):
            assert zoom.buckets is not None
            found = _series.columns(zoom.buckets, "S", None, SPARK_COLUMNS, zoom.axis)
            answers[name] = {"x": found.x, "min": found.min, "max": found.max, "end": found.end}
        return answers

    def bands(self, store: Store, groups: Sequence[tuple[str, Sequence[Named]]], request: BandsRequest) -> dict[str, Any]:
        """The answer to POST /bands."""
        curves: list[list[_bands.Curve]] = []
        for _, runs in groups:
            lines = []
            for _, zoom in self._zooms(store, runs, request.one, None):
                assert zoom.buckets is not None
                found = _series.columns(zoom.buckets, request.one.series, None, request.one.columns, zoom.axis)
                lines.append((found.x, found.end))
            curves.append(lines)
        grid = _bands.grid([line for lines in curves for line in lines], request.one.x0, request.one.x1, request.one.columns)
        return {
            "groups": [
                {"label": label, "x": grid, **_bands.quantiles(lines, grid, request.quantiles)}
                for (label, _), lines in zip(groups, curves, strict=True)
            ]
        }

    def heat(self, store: Store, run: RunRow, request: HeatRequest) -> dict[str, Any]:
        """The answer to GET /heatmap."""
        self._learn(store, [run], request.branch)
        end = self._span(run, request.branch).last
        zoom = Zoom(run, request.branch, Axis(), request.x0, request.x1, request.columns, end)
        for done in fill(store, [zoom]):
            assert done.buckets is not None
            return _series.heat(done.buckets, run.config.scale_groups, request.columns, HEAT_ROWS)
        raise AssertionError("one in, one out")

    def branches(self, store: Store, run: RunRow) -> list[dict[str, int]]:
        """The run's current history, and the steps abandoned by each rewind."""
        found = []
        for branch in (0, *store.branches(run)):
            self._learn(store, [run], branch)
            span = self._span(run, branch)
            if span.last or not branch:
                found.append({"branch": branch, "first_step": span.first, "last_step": span.last})
        return found

    def _zooms(
        self, store: Store, runs: Sequence[Named], request: SeriesRequest, group: int | None
    ) -> Iterator[tuple[str, Zoom]]:
        self._learn(store, [run for _, run in runs if run is not None], request.branch)
        zooms: dict[str, Zoom] = {}
        for name, run in runs:
            if run is not None and (group is None or group < len(run.config.scale_groups)):
                span = self._span(run, request.branch)
                axis = Axis(request.x, span.time)
                zooms[name] = Zoom(run, request.branch, axis, request.x0, request.x1, request.columns, span.last)
        yield from zip(zooms, fill(store, list(zooms.values())), strict=True)

    def _span(self, run: RunRow, branch: int) -> "_Span":
        """The cached start and end of a branch."""
        span = self._spans.get((run.id, branch, run.epoch), _Span(0, 0, 0))
        return span._replace(last=run.last_step) if span.first and not branch else span

    def _learn(self, store: Store, runs: Sequence[RunRow], branch: int) -> None:
        """Looks up where branches begin, if that is not cached. The end of the current history is in the run's row."""
        new = [run for run in runs if (run.id, branch, run.epoch) not in self._spans]
        found = store.summaries([SummaryRequest(run, branch, 1, END, 1) for run in new]) if new else []
        for run, buckets in zip(new, found, strict=True):
            if len(buckets):
                first, last = buckets[0], buckets[-1]
                span = _Span(int(first["first_step"]), int(last["last_step"]), int(first["first_time"]))
                self._spans[run.id, branch, run.epoch] = span
        while len(self._spans) > _KNOWN:
            self._spans.pop(next(iter(self._spans)))


class _Span(NamedTuple):
    """The first and the last step of a branch, and the time of the first, ns since 1970; all 0 if it has no step."""

    first: int
    last: int
    time: int


def _missing(name: str) -> dict[str, Any]:
    empty: dict[str, list[float]] = {field: [] for field in _series.Columns.__dataclass_fields__}
    return {"name": name, "first_step": 0, "last_step": 0, "exact": True, "columns": empty, "missing": True}
