"""forks.py TARGET SEED FOLDER: 200 forked children of all kinds beside one stream, most while a step is in flight."""

import random
import sys

from beside import Children, Training, report

from mechanicd.client import connect


def main() -> None:
    target, seed, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    rng = random.Random(seed)
    with connect(target) as client, client.open_run("forks", start=0) as session:
        training, children = Training(session, seed), Children(client, session, rng)
        for _ in range(200):
            training.step(rng.randint(0, 3))
            in_flight = rng.random() < 0.8
            if in_flight:
                training.begin()
            children.fork()
            if in_flight:
                training.finish()
        children.join()
        training.step(20)
        assert session.connected, "no fork was taken for an outage"
        training.end(folder)
    report(steps=len(training.scales), children=children.counts)


if __name__ == "__main__":
    main()
