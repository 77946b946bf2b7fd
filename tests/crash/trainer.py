"""A trainer without a framework. Its reductions depend on the step and on S, so a wrong bit anywhere shows in all that follows.

    python trainer.py TARGET RUN SEED STEPS CHECKPOINT GATE

Prints a line with the step now and then, and "done" at the end. Resumes from CHECKPOINT if the file exists. It takes its last
steps only when the file GATE exists, so that nobody is done before all the kills have happened.
"""

import math
import os
import random
import sys
import time
from pathlib import Path

from mechanicd.client import MechanicdError, Reductions, TunerConfig, TunerState, open_run

CHECKPOINT_EVERY = 100


def reductions(seed: int, step: int, S: float) -> Reductions:
    """What step t of this training reduces to, given the S it was played with."""
    rng = random.Random(seed * 1_000_003 + step)
    drift = math.tanh(3.0 * S) - 0.5
    return Reductions(rng.gauss(drift, 1.0), rng.gauss(S, 1.0), rng.random(), 1.0 + rng.random())


def main() -> None:
    target, run, seed, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    checkpoint, gate = Path(sys.argv[5]), Path(sys.argv[6])
    start: int | TunerState = 0
    if checkpoint.exists():
        start = TunerState.from_bytes(checkpoint.read_bytes(), TunerConfig())
    session = open_run(target, run, start=start, deadline=1.0)
    S = session.scales[0]
    while session.state.step < steps:
        if session.state.step >= steps - CHECKPOINT_EVERY and not gate.exists():
            time.sleep(0.01)
            continue
        S = session.step(reductions(seed, session.state.step + 1, S))
        step = session.state.step
        if step % 10 == 0:
            time.sleep(0.001)  # leave the other processes some of the machine
        if step % CHECKPOINT_EVERY == 0:
            print(step, flush=True)
            try:
                session.flush(0.5)
            except MechanicdError:
                continue  # a later checkpoint will do; this one would claim steps that the server has not got
            fresh = checkpoint.with_suffix(".new")
            fresh.write_bytes(session.state.to_bytes())
            os.replace(fresh, checkpoint)
    session.flush(60)
    session.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
