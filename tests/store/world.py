"""A small fixed world of runs, for files of old schemas: written once by the mechanicd of that schema, read by every later one.

    python tests/store/world.py FILE     writes it with the mechanicd that is installed, in today's schema

Numbers are made by formula, so the test that reads a file needs no second file to compare with.
"""

import math
import sys

from mechanicd.runs import EventKind, EventRow, RunRow, RunStats, RunStatus, StepRow, first_scale, pack, session_key
from mechanicd.store import Claim, Commit, Release, Store, open_store
from mechanicd.tuner import TunerConfig, TunerState

PLAIN = TunerConfig()
GROUPS = TunerConfig(convention="optax", betas=(0.5, 0.9), s_init=1e-6, scale_groups=("body", "head", "Größe"))
ALL = 2**62


def step(number: int, groups: int, about: str) -> StepRow:
    """Step `number`, the same for ever."""
    base = float(len(about)) + number

    def values(shift: float) -> tuple[float, ...]:
        return tuple((base + shift + group) / 7.0 for group in range(groups))

    h = tuple(math.nan for _ in range(groups)) if number % 50 == 0 else values(5)
    outcome = 2 if number % 50 == 0 else 1
    lr = None if number % 3 == 0 else 1.0 / number
    return StepRow(number, 10**18 + number, outcome, values(1), values(2), values(3), values(4), h, values(6), lr)


def write(store: Store) -> None:
    """Makes the world in an empty store."""
    row = _claim(store, _create(store, "zoo", "long/run", PLAIN), 0, 11)
    for first in range(1, 3001, 7):  # as flushes do: a few steps each
        row = _commit(store, row, first, min(first + 6, 3000), "long/run")
    release = Release(run_id=row.id, epoch=row.epoch, session=row.session, status=RunStatus.FINISHED, message="done „well“")
    store.commit([], [release])

    row = _claim(store, _create(store, "zoo", "rewound", PLAIN), 0, 21)
    row = _commit(store, row, 1, 1500, "first")
    row = _claim(store, row, 700, 22)
    row = _commit(store, row, 701, 710, "second")
    row = _claim(store, row, 20, 23)
    row = _commit(store, row, 21, 30, "third")
    row = _claim(store, row, 100, 24)  # adopted: a gap from 31 to 100
    _commit(store, row, 101, 105, "fourth")

    row = _claim(store, _create(store, "zoo", "groups", GROUPS), 0, 31)
    _commit(store, _commit(store, row, 1, 40, "groups"), 41, 300, "groups")
    _create(store, "another", "new", PLAIN)


def check(store: Store) -> None:
    """Asserts that the world is there, to the last bit."""
    assert [(row.project, row.run) for row in store.list_runs(None, None, 100)] == [
        ("another", "new"),
        ("zoo", "groups"),
        ("zoo", "long/run"),
        ("zoo", "rewound"),
    ]
    new, groups, long, rewound = store.list_runs(None, None, 100)
    assert (new.epoch, new.session, new.last_step, new.step_time) == (0, 0, 0, 0)
    assert (groups.config, groups.session, groups.last_step, groups.state) == (GROUPS, session_key(31), 300, b"state 300")
    assert (long.status, long.status_message, long.session, long.last_step) == (RunStatus.FINISHED, "done „well“", 0, 3000)
    assert (rewound.session, rewound.rewinds, rewound.last_step) == (session_key(24), 2, 105)
    assert rewound.labels == {"session": "24"}
    assert rewound.scale == (10.5,)
    assert [row.create_time for row in (new, groups, long, rewound)] == [10**18] * 4
    assert steps(store, long) == packed("long/run", range(1, 3001))
    assert steps(store, groups) == packed("groups", range(1, 301), 3)
    assert steps(store, new) == []
    assert steps(store, rewound) == (
        packed("first", range(1, 21)) + packed("third", range(21, 31)) + packed("fourth", range(101, 106))
    )
    assert steps(store, rewound, 1) == packed("first", range(701, 1501))
    assert steps(store, rewound, 2) == packed("first", range(21, 701)) + packed("second", range(701, 711))
    found = store.by_session(session_key(22))
    assert found is not None
    assert found[0] == rewound


def check_noted(store: Store) -> None:
    """Asserts what schemas from version 3 on have beside it."""
    new, groups, long, rewound = store.list_runs(None, None, 100)
    assert [row.command for row in (new, groups, long, rewound)] == [
        "",
        *(f"python train.py --session {session}" for session in (31, 11, 24)),
    ]
    assert (new.stats, long.stats.tuned, long.stats.non_finite, rewound.stats.since) == (RunStats(), 2940, 60, 100)
    assert [mark.step for mark in long.stats.marks] == [2880, 2944]
    assert store.events(new.id) == []
    assert store.events(rewound.id) == [_opened(*each) for each in ((21, 0), (22, 700), (23, 20), (24, 100))]


def step_on(store: Store, project: str, run: str, last: int) -> None:
    """One more commit of a run that a session holds, up to step `last`."""
    row = store.get(project, run)
    assert row is not None
    _commit(store, row, row.last_step + 1, last, run)


def steps(store: Store, row: RunRow, branch: int = 0) -> list[bytes]:
    """The exact steps of a branch."""
    groups = len(row.config.scale_groups)
    return [pack(groups, each._replace(branch=0)) for each in store.steps(row, branch, 1, ALL, ALL)]


def packed(about: str, numbers: range, groups: int = 1) -> list[bytes]:
    """What `steps` should give."""
    return [pack(groups, step(number, groups, about)) for number in numbers]


def _create(store: Store, project: str, run: str, config: TunerConfig) -> RunRow:
    state = TunerState.initial(config)
    return store.create(project, run, config, state.to_bytes(), state.scale, 10**18)


def _claim(store: Store, row: RunRow, after_step: int, session: int) -> RunRow:
    return store.claim(
        Claim(
            run_id=row.id,
            expected_epoch=row.epoch,
            session=session_key(session),
            after_step=after_step,
            state=b"state %d" % after_step,
            scale=(0.5,) * len(row.config.scale_groups),
            labels={"session": str(session)},
            time=10**18,
            command=f"python train.py --session {session}",
            stats=RunStats(since=after_step),
            events=(_opened(session, after_step),),
        )
    )


def _opened(session: int, after_step: int) -> EventRow:
    return EventRow(10**18, after_step, EventKind.OPENED, f"session {session} „began“")


def _commit(store: Store, row: RunRow, first: int, last: int, about: str) -> RunRow:
    groups = len(row.config.scale_groups)
    records = b"".join(pack(groups, step(number, groups, about)) for number in range(first, last + 1))
    commit = Commit(
        run_id=row.id,
        epoch=row.epoch,
        session=row.session,
        after_step=row.last_step,
        last_step=last,
        state=b"state %d" % last,
        scale=(last / 10,) * groups,
        step_time=10**18 + last,
        stats=row.stats.after(groups, first_scale(row.config), records),
        records=records,
    )
    assert store.commit([commit], []) == [True]
    after = store.get(row.project, row.run)
    assert after is not None
    return after


if __name__ == "__main__":
    made = open_store(f"sqlite:///{sys.argv[1]}")
    write(made)
    check(made)
    check_noted(made)
    made.close()
