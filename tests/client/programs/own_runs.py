"""own_runs.py TARGET SEED FOLDER METHOD: children of multiprocessing that open runs of their own, beside their parent's stream.

METHOD: "spawn" or "forkserver"; or "fork", where the children are started before the parent's first call.
"""

import multiprocessing
import sys

from beside import Training, report

from mechanicd.client import connect

CHILDREN = 3


def own_run(target: str, index: int, seed: int, folder: str) -> None:
    with connect(target) as client:
        Training(client.open_run(f"own/{index}", start=0), seed + index).step(100).end(folder)


def main() -> None:
    target, seed, folder, method = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    context = multiprocessing.get_context(method)
    children = [context.Process(target=own_run, args=(target, index, seed, folder)) for index in range(CHILDREN)]
    with connect(target) as client:
        if method == "fork":
            for child in children:
                child.start()
        training = Training(client.open_run("parent", start=0), seed - 1)
        for child in children:
            training.begin()
            if method != "fork":
                child.start()
            training.finish()
        while any(child.is_alive() for child in children):
            training.step()
        codes = [child.exitcode for child in children]
        assert codes == [0] * CHILDREN, f"the children ended with {codes}"
        assert training.session.connected, "no child was taken for an outage"
        training.end(folder)
    report(steps=len(training.scales), children=CHILDREN, method=method)


if __name__ == "__main__":
    main()
