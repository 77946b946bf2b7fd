"""/metrics: the counts of the serving process and facts about the runs, as Prometheus text."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from mechanicd.dashboard._run_json import Item
from mechanicd.runs import AlertKind, RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the metrics are made from.

    Attributes:
        version: the version of this mechanicd.
        counts: the last counts that the serving process reported; empty before the first.
        age: seconds since then.
        readable: whether the page's process can read the store.
        items: the runs.
        per_run: whether to export each run by name.
    """

    version: str
    counts: Mapping[str, Any]
    age: float
    readable: bool
    items: Iterable[Item]
    per_run: bool


def text(facts: Facts, accept: str) -> tuple[bytes, str]:
    """The metrics and their media type, in the form that the Accept header asks for."""
    registry = CollectorRegistry()
    registry.register(_Told(facts))
    try:
        encode, media_type = choose_encoder(accept)
    except (TypeError, ValueError):  # the header asks for a version that is no number
        encode, media_type = choose_encoder("")
    return encode(registry), media_type


class _Told:
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        facts = self._facts
        items = list(facts.items)
        yield _labelled("mechanicd_build_info", "The version of this server.", ["version"], {facts.version: 1})
        yield GaugeMetricFamily("mechanicd_store_readable", "Whether the page can read the store.", value=facts.readable)
        statuses, needs = Counter(item["status"] for item in items), Counter(need["kind"] for i in items for need in i["needs"])
        by_status = {status.value: statuses[status] for status in RunStatus}
        yield _labelled("mechanicd_runs", "Runs in the store, by status.", ["status"], by_status)
        by_kind = {kind.value: needs[kind] for kind in AlertKind}
        yield _labelled("mechanicd_needs", "Runs that need attention, by kind of alert.", ["kind"], by_kind)
        if facts.counts:
            yield from _of_server(facts.counts, facts.age)
        if facts.per_run:
            yield from _of_runs(items)


def _of_server(counts: Mapping[str, Any], age: float) -> Iterator[Metric]:
    steps = CounterMetricFamily("mechanicd_steps", "Steps committed, by outcome.", labels=["outcome"])
    opened = CounterMetricFamily("mechanicd_sessions_opened", "Sessions opened, by how they began.", labels=["outcome"])
    for family, values in ((steps, counts["steps"]), (opened, counts["opened"])):
        for label, value in values.items():
            family.add_metric([label], value)
        yield family
    for name, help_, field in (
        ("mechanicd_step_seconds", "Time that the tuners took for one message of steps.", "step_seconds"),
        ("mechanicd_commit_seconds", "Time that one group commit took.", "commit_seconds"),
    ):
        yield HistogramMetricFamily(name, help_, buckets=_buckets(counts[field]), sum_value=counts[field]["sum"])
    yield CounterMetricFamily(
        "mechanicd_commits_failed", "Group commits that the store refused.", value=counts["commits_failed"]
    )
    yield CounterMetricFamily("mechanicd_runs_lost", "Runs that another server took over.", value=counts["lost"])
    for name, help_, value in (
        ("mechanicd_sessions_open", "Open sessions on this server.", counts["sessions"]),
        ("mechanicd_store_up", "Whether the store accepts writes.", counts["store_works"]),
        ("mechanicd_journal_bytes", "Size of the committed history that is not folded into chunks yet.", counts["unfolded"]),
        ("mechanicd_counts_age_seconds", "Time since the server last reported its counts; it does so once a second.", age),
    ):
        yield GaugeMetricFamily(name, help_, value=value)
    if (expires := counts.get("certificate_expires")) is not None:
        name = "mechanicd_certificate_expires_timestamp_seconds"
        yield GaugeMetricFamily(name, "The end of the certificate's validity.", value=expires)


def _of_runs(items: Iterable[Item]) -> Iterator[Metric]:
    of_run = ["project", "run"]
    fields = {
        "S": GaugeMetricFamily("mechanicd_run_scale", "S of a run, the largest of its scale groups.", labels=of_run),
        "step": GaugeMetricFamily("mechanicd_run_step", "The last step of a run.", labels=of_run),
        "effective_lr": GaugeMetricFamily("mechanicd_run_effective_lr", "S times BASE's learning rate.", labels=of_run),
    }
    for item in items:
        for field, family in fields.items():
            if item[field] is not None and item["archive_time"] is None:
                family.add_metric([item["project"], item["run"]], item[field])
    yield from fields.values()


def _labelled(name: str, help_: str, labels: list[str], values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def _buckets(told: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Cumulative counts, as Prometheus expects them."""
    total, found = 0, []
    for bound, count in zip([*map(repr, told["bounds"]), "+Inf"], told["counts"], strict=True):
        total += count
        found.append((bound, float(total)))
    return found
