"""`mechanicd runs export`: a run's steps as text. Of the commands over runs it alone needs numpy, which is slow to import."""

import sys
from collections.abc import Iterable, Iterator

import click

from mechanicd.cli import _options
from mechanicd.cli._ranges import BRANCH, FIRST_STEP
from mechanicd.client import Client, MechanicdError, connect
from mechanicd.runs import EXPORT_FORMATS, StepColumns, export_rows
from mechanicd.tuner import Reductions
from mechanicd.v1 import resources_pb2, run_service_pb2


@click.command()
@_options.target_option
@_options.project_option
@_options.run_argument
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(EXPORT_FORMATS)),
    default="csv",
    show_default=True,
    help='jsonl: one object per line. In json and jsonl, non-finite numbers are strings such as "NaN".',
)
@click.option(
    "--branch",
    type=BRANCH,
    default=0,
    show_default=True,
    help="0: the current history; n: the steps abandoned by the n-th rewind.",
)
@click.option("--first", type=FIRST_STEP, default=1, show_default=True, metavar="STEP", help="First step to export.")
@click.option("--last", type=FIRST_STEP, metavar="STEP", help="Last step to export. Default: the run's last.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format jsonl.")
@_options.reports_errors
def export(target: str, project: str, run: str, format_: str, branch: int, first: int, last: int | None, as_json: bool) -> None:
    """Write every step of a run to stdout, exactly: one row per step and scale group."""
    name = _options.full_name(project, run)
    with connect(target) as client:
        found = _options.get_run(client, name)
        lost: list[MechanicdError] = []
        rows = export_rows(_saved_steps(client, name, branch, first, last, lost), list(found.config.scale_groups))
        for text in EXPORT_FORMATS["jsonl" if as_json else format_](rows):
            sys.stdout.write(text)  # click.echo would take out what looks like a terminal's escape codes
    if lost:
        more = f" (and {len(lost) - 1} more ranges)" if len(lost) > 1 else ""
        raise MechanicdError(lost[0].reason, f"all other steps are written, but {lost[0].message}{more}", lost[0].metadata)


def _saved_steps(
    client: Client, name: str, branch: int, first: int, last: int | None, lost: list[MechanicdError]
) -> Iterator[StepColumns]:
    """Every step that can be read. Each range of others is added to `lost`, as the server's error."""
    while True:
        try:
            yield from _steps(client, name, branch, first, last)
            return
        except MechanicdError as error:
            if error.reason != "STORE_DAMAGED" or int(error.metadata.get("last_step", 0)) < first:
                raise
            lost.append(error)
            first = int(error.metadata["last_step"]) + 1
            if last is not None and first > last:
                return


def _steps(client: Client, name: str, branch: int, first: int, last: int | None) -> Iterator[StepColumns]:
    token = ""
    while True:
        page = client.call(
            "QuerySeries",
            run_service_pb2.QuerySeriesRequest(
                name=name,
                branch=branch,
                first_step=first,
                last_step=last or 0,
                page_token=token,
                page_size=10_000,
                as_columns=True,
            ),
            60.0,
        )
        yield _columns(page.columns) if page.HasField("columns") else _of_records(page.records)
        token = page.next_page_token
        if not token:
            return


def _columns(sent: resources_pb2.StepColumns) -> StepColumns:
    values = {field: list(getattr(sent, field)) for field in StepColumns._fields if field not in ("time", "base_lr")}
    lr = [value if there else None for value, there in zip(sent.base_lr, sent.has_base_lr, strict=True)]
    return StepColumns(**values, time=list(sent.time_ns), base_lr=lr)


def _of_records(records: Iterable[resources_pb2.StepRecord]) -> StepColumns:
    """What a server of an older version sends."""
    found = list(records)
    sent = {field: [value for record in found for value in getattr(record.reductions, field)] for field in Reductions._fields}
    return StepColumns(
        **sent,
        step=[record.step for record in found],
        time=[record.time.ToNanoseconds() for record in found],
        outcome=[int(record.outcome) for record in found],
        base_lr=[record.base_lr if record.HasField("base_lr") else None for record in found],
        h=[value for record in found for value in record.h],
        scale=[value for record in found for value in record.scale],
    )
