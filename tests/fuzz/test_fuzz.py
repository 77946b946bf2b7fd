"""Whatever comes from outside, each parser and each handler takes it or refuses it by name, within a second, and leaves nothing
behind. A finding prints the line that repeats it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.fuzz.harness import MEBIBYTES, Meter, campaign, quiet
from tests.fuzz.targets import NOTHING_FROM_OUTSIDE, TARGETS, covered, parser_names
from tests.support.soak import SOAK, chosen_seed

MOST = 1_000_000
"""What `make soak` draws at least, over all targets."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_inputs_are_taken_or_refused_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = TARGETS[name]
    if not SOAK:
        campaign(target, 1, target.quick, weighed=False)
        return
    seed = chosen_seed()
    print(f"seed {seed}")
    report = campaign(target, seed, target.rounds)
    with capsys.disabled():
        print(f"\nseed {seed}, {report}")
    assert report.after - report.before < MEBIBYTES, str(report)


def test_every_parser_has_a_target() -> None:
    found, had = parser_names(), covered()
    assert found - had - NOTHING_FROM_OUTSIDE.keys() == set()
    assert NOTHING_FROM_OUTSIDE.keys() - found == set()


def test_soak_draws_a_million_inputs() -> None:
    drawn = sum(target.rounds * target.inputs for target in TARGETS.values())
    assert drawn >= MOST, f"{drawn:,}"


def test_an_input_at_fault_is_told_with_the_line_that_repeats_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "KEPT", tmp_path)

    def fails(given: str) -> None:
        if "=" in given:
            raise KeyError(given)

    broken = replace(TARGETS["filter"], take=fails)
    with (
        pytest.raises(harness.AtFault, match=r"MECHANICD_SEED=1 \.venv/bin/python -m tests\.fuzz filter \d+") as caught,
        quiet(),
    ):
        campaign(broken, 1, 100)
    number = int(str(caught.value).partition("tests.fuzz filter ")[2].partition(";")[0])
    with pytest.raises(harness.AtFault):
        broken.one(1, number, Meter())
    (kept,) = tmp_path.iterdir()
    assert f"tests.fuzz filter {number}" in kept.read_text()
