"""Answers about curves: what the store has of some runs, as columns. Everything here runs on the store's thread."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from mechanicd.dashboard import _bands, _series
from mechanicd.dashboard._request import BandsRequest, HeatRequest, SeriesRequest
from mechanicd.dashboard._series import Axis
from mechanicd.dashboard._zoom import END, Zoom, fill
from mechanicd.store import RunRow, Store, SummaryRequest

SPARK_COLUMNS: Final = 60
HEAT_ROWS: Final = 512
_KNOWN: Final = 20_000

Named = tuple[str, RunRow | None]


class Curves:
    """Remembers where each run begins, which does not change while one session holds it."""

    def __init__(self) -> None:
        self._begins: dict[tuple[int, int, int], tuple[int, int]] = {}

    def series(self, store: Store, runs: Sequence[Named], request: SeriesRequest) -> dict[str, Any]:
        """The answer to POST /series."""
        answers = {name: _missing(name) for name, _ in runs}
        for name, zoom in self._zooms(store, runs, request, request.group):
            assert zoom.buckets is not None
            found = _series.columns(zoom.buckets, request.series, request.group, request.pixels, zoom.axis)
            first, last = self._span(store, zoom.run, request.branch)
            answers[name] = {
                "name": name,
                "first_step": first,
                "last_step": last,
                "exact": found.exact,
                "columns": found.as_dict(),
                "missing": False,
            }
        return {"series": request.series, "x": request.x, "runs": list(answers.values())}

    def sparklines(self, store: Store, runs: Sequence[Named]) -> dict[str, Any]:
        """The answer to GET /sparklines."""
        answers: dict[str, Any] = {}
        request = SeriesRequest(runs=tuple(name for name, _ in runs), pixels=SPARK_COLUMNS)
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
                found = _series.columns(zoom.buckets, request.one.series, None, request.one.pixels, zoom.axis)
                lines.append((found.x, found.end))
            curves.append(lines)
        grid = _bands.grid([line for lines in curves for line in lines], request.one.x0, request.one.x1, request.one.pixels)
        return {
            "groups": [
                {"label": label, "x": grid, **_bands.quantiles(lines, grid, request.quantiles)}
                for (label, _), lines in zip(groups, curves, strict=True)
            ]
        }

    def heat(self, store: Store, run: RunRow, request: HeatRequest) -> dict[str, Any]:
        """The answer to GET /heatmap."""
        zoom = Zoom(run, request.branch, Axis(), request.x0, request.x1, request.columns)
        for done in fill(store, [zoom]):
            assert done.buckets is not None
            return _series.heat(done.buckets, run.config.scale_groups, request.columns, HEAT_ROWS)
        raise AssertionError("one in, one out")

    def branches(self, store: Store, run: RunRow) -> list[dict[str, int]]:
        """The run's own history, and what was given up at each rewind."""
        found = []
        for branch in range(run.rewinds + 1):
            first, last = self._span(store, run, branch)
            if last or not branch:
                found.append({"branch": branch, "first_step": first, "last_step": last})
        return found

    def _zooms(
        self, store: Store, runs: Sequence[Named], request: SeriesRequest, group: int | None
    ) -> Iterator[tuple[str, Zoom]]:
        self._learn(store, [run for _, run in runs if run is not None], request.branch)
        zooms: dict[str, Zoom] = {}
        for name, run in runs:
            if run is not None and (group is None or group < len(run.config.scale_groups)):
                origin = self._begin(store, run, request.branch)[1] if request.x == "relative" else 0
                axis = Axis(request.x, origin)
                zooms[name] = Zoom(run, request.branch, axis, request.x0, request.x1, request.pixels)
        yield from zip(zooms, fill(store, list(zooms.values())), strict=True)

    def _span(self, store: Store, run: RunRow, branch: int) -> tuple[int, int]:
        """The first and the last step of a branch; (0, 0) where it has none."""
        if branch == 0:
            first = self._begin(store, run, 0)[0]
            return first, run.last_step if first else 0
        buckets = store.summary(run, branch, 1, END, 1)
        return (int(buckets["first_step"][0]), int(buckets["last_step"][-1])) if len(buckets) else (0, 0)

    def _begin(self, store: Store, run: RunRow, branch: int) -> tuple[int, int]:
        """The first step of a branch, and its time in ns since 1970; (0, 0) where it has none."""
        self._learn(store, [run], branch)
        return self._begins.get((run.id, branch, run.epoch), (0, 0))

    def _learn(self, store: Store, runs: Sequence[RunRow], branch: int) -> None:
        """Finds out where runs begin of which it is not known yet."""
        new = [run for run in runs if (run.id, branch, run.epoch) not in self._begins]
        found = store.summaries([SummaryRequest(run, branch, 1, END, 1) for run in new]) if new else []
        for run, buckets in zip(new, found, strict=True):
            if len(buckets):
                self._begins[run.id, branch, run.epoch] = int(buckets["first_step"][0]), int(buckets["first_time"][0])
        while len(self._begins) > _KNOWN:
            self._begins.pop(next(iter(self._begins)))


def _missing(name: str) -> dict[str, Any]:
    empty: dict[str, list[float]] = {field: [] for field in _series.Columns.__dataclass_fields__}
    return {"name": name, "first_step": 0, "last_step": 0, "exact": True, "columns": empty, "missing": True}
