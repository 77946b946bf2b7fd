"""A made-up fleet of trainings: loads a server through the real protocol, or fills a store directly.

    python tests/benchmarks/fleet.py --target 127.0.0.1:50051 --runs 200 --steps 5000 --rate 2
    python tests/benchmarks/fleet.py --direct sqlite:///fleet.db --runs 1000 --steps 1000000 --keep-steps 5000

Runs have models, batches, bases and seeds as labels, and fates: healthy, finished, preempted, failed, silent, stuck, collapsed,
running_away, non_finite, oscillating (see replay/plans.py). Their reductions close the loop with the tuner, so S does what the
fate says because the tuner makes it so. The same --seed makes the same fleet.

Size: a step's exact record takes 80 bytes (32 + 48 a scale group) and its part of the pyramid about 21, so 1,000 runs of
1,000,000 steps would take 100 GB, more than most disks have. --keep-steps N leaves exact steps of each run's end alone, as
`mechanicd serve --keep-steps N` does; of earlier ones min, max and last remain, in buckets of 16 steps: about 21 GB for that
fleet, written in about a quarter of an hour
on two cores; less with --distinct N, where runs share N histories.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from replay import direct, live, plans
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mechanicd.client import MechanicdError
from mechanicd.store import RunExists, StoreError


@contextmanager
def progress_bar(hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on stderr where that is a terminal."""
    console = Console(stderr=True)
    if hidden or not console.is_terminal:
        yield lambda done, total: None
        return
    text = TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps, {task.fields[speed]:,.0f}/s")
    began = time.monotonic()
    with Progress(BarColumn(), text, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=1, speed=0.0)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=max(1, total), speed=done / max(1e-9, time.monotonic() - began))

        yield show


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--target", metavar="HOST:PORT", help="train at this server")
    where.add_argument("--direct", metavar="STORE_URL", help="write straight into this store; no server may have it open")
    parser.add_argument("--runs", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--steps", type=int, default=1000, help="of each (default 1000)")
    parser.add_argument("--project", default="fleet", help="where the runs are (default fleet)")
    parser.add_argument(
        "--fates", metavar="FATE:WEIGHT,…", help=f"default: {', '.join(f'{k}:{v:g}' for k, v in plans.FATES.items())}"
    )
    parser.add_argument("--grouped", type=int, metavar="N", help="so many runs have a scale group a tensor (default: 1 of 50)")
    parser.add_argument(
        "--groups",
        type=int,
        default=24,
        help="their scale groups (default 24); with --direct they have steps/groups steps each",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same fleet (default 0)")
    parser.add_argument("--json", action="store_true", help="report in JSON, no progress bar")
    load = parser.add_argument_group("with --target")
    load.add_argument("--rate", type=float, default=0.0, metavar="STEPS/S", help="of each run (default: as fast as it goes)")
    load.add_argument("--streams", type=int, default=4, help="connections, a thread each (default 4)")
    load.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after so long (default: at the end of all runs)"
    )
    fill = parser.add_argument_group("with --direct")
    fill.add_argument("--keep-steps", type=int, metavar="N", help="exact steps of the last N steps of each run (default: all)")
    fill.add_argument(
        "--distinct", type=int, metavar="N", help="compute so many histories, which the runs share (default: each has its own)"
    )
    fill.add_argument("--processes", type=int, default=direct.cores(), help="that compute (default: one a core)")
    given = parser.parse_args()
    for field in ("runs", "steps", "groups", "streams", "processes"):
        if getattr(given, field) < 1:
            parser.error(f"--{field} {getattr(given, field)}: give 1 or more")
    try:
        given.fates = plans.parse_fates(given.fates) if given.fates else plans.FATES
    except ValueError as error:
        parser.error(f"--fates: {error}")
    given.distinct = max(1, min(given.distinct or given.runs, given.runs))
    given.grouped = given.runs // 50 if given.grouped is None else given.grouped
    return given


def main() -> None:
    given = arguments()
    fleet = plans.make(
        given.runs,
        given.steps,
        given.fates,
        given.grouped,
        given.groups,
        given.seed,
        even=given.direct is not None,
        distinct=given.distinct,
    )
    began = time.perf_counter()
    try:
        with progress_bar(given.json) as progress:
            if given.direct:
                direct.fill(
                    given.direct, given.project, fleet, given.keep_steps, given.distinct, given.processes, given.seed, progress
                )
                steps = sum(plan.steps for plan in fleet)
            else:
                steps = live.drive(
                    given.target, given.project, fleet, given.rate, given.streams, given.seed, given.seconds, progress
                )
    except (MechanicdError, StoreError, RunExists) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    seconds = time.perf_counter() - began
    fates = {fate: sum(plan.fate == fate for plan in fleet) for fate in given.fates}
    if given.json:
        report = {"runs": len(fleet), "steps": steps, "seconds": seconds, "steps_per_s": steps / seconds, "fates": fates}
        print(json.dumps(report))
        return
    print(f"{len(fleet)} runs, {steps:,} steps in {seconds:.1f} s, {steps / seconds:,.0f} steps/s")
    print(", ".join(f"{count} {fate}" for fate, count in fates.items()))


if __name__ == "__main__":
    main()
