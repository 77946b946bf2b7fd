"""Repeats an input of a target: `MECHANICD_SEED=n python -m tests.fuzz TARGET NUMBER`; without a number, a whole campaign."""

import sys

from tests.support import stubs

stubs.refresh()  # before anything imports them
from tests.fuzz.harness import AtFault, Meter, campaign, quiet, seed  # noqa: E402
from tests.fuzz.targets import TARGETS  # noqa: E402


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz TARGET [NUMBER]; targets: {', '.join(TARGETS)}")
    target, meter = TARGETS[sys.argv[1]], Meter()
    if len(sys.argv) == 2:
        print(campaign(target, seed(), target.rounds))
        return
    with quiet() as errors:
        target.one(seed(), int(sys.argv[2]), meter)
    if errors:
        raise AtFault(errors[0])
    print(f"it passes: {meter}")


if __name__ == "__main__":
    main()
