"""loader.py TARGET SEED FOLDER CONTEXT: a mechanized optimizer trains while a DataLoader's workers come and go.

CONTEXT: how the workers are started, "fork" or "spawn".
"""

import contextlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from beside import R, Training, refused, report

from mechanicd.client import Session, open_run
from mechanicd.torch import mechanize

EPOCHS, ROWS, BATCH = 3, 96, 8


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of a linear problem. Like many a dataset it refers to more than it needs."""

    def __init__(self, seed: int, opt: Any = None, session: Session | None = None) -> None:
        make = torch.Generator().manual_seed(seed)
        self.x = torch.randn(ROWS, 5, generator=make)
        self.y = self.x @ torch.randn(5, 1, generator=make)
        self.opt, self.session = opt, session

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        if self.opt is not None:
            assert self.opt.run == "loader", repr(self.opt)
            assert self.opt.scale >= 0.0
        if self.session is not None:
            assert refused(self.opt.step, self.opt.flush, lambda: self.session.begin(R)), "a worker used its parent's session"
        return self.x[row], self.y[row]


class Trainer:
    """A model and its mechanized optimizer."""

    def __init__(self, seed: int, **where: Any) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.opt = mechanize(torch.optim.AdamW(self.model.parameters(), lr=1.0), **where)
        self.scales: list[float] = []

    def train(self, batches: Any) -> None:
        for x, y in batches:
            loss = torch.nn.functional.mse_loss(self.model(x), y)
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            self.scales.append(self.opt.scale)


def loader(rows: Rows, seed: int, **workers: Any) -> Any:
    """The same batches in the same order, whoever loads them."""
    return torch.utils.data.DataLoader(
        rows, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed), **workers
    )


def main() -> None:
    target, seed, folder, context = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    workers = {"num_workers": 2, "multiprocessing_context": context}
    alone, served = Trainer(seed), Trainer(seed, run="loader", target=target)
    beside = Training(open_run(target, "beside", start=0), seed).step(10)
    # A forked worker has copies of both sessions; to a spawned one only what can be pickled comes.
    rows = Rows(seed, served.opt, beside.session if context == "fork" else None)
    served.train(loader(Rows(seed), seed))
    alone.train(loader(Rows(seed), seed))
    for epoch in range(EPOCHS):
        beside.begin()
        served.train(loader(rows, seed + epoch, **workers))
        beside.finish()
        alone.train(loader(Rows(seed), seed + epoch))
        copy = pickle.loads(pickle.dumps(served.opt))
        assert copy.scale == served.opt.scale
        copy.close()
    if context == "spawn":
        with contextlib.suppress(TypeError):  # how pickle says that an object belongs to its process
            next(iter(loader(Rows(seed, served.opt, beside.session), seed, **workers)))
            raise AssertionError("a session went to another process")
    served.train(loader(Rows(seed), seed))
    alone.train(loader(Rows(seed), seed))
    assert served.scales == alone.scales, "S is not that of the training without a server"
    for one, other in zip(served.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert served.opt.flush() == len(served.scales)
    served.opt.close()
    beside.step(10).end(folder)
    (Path(folder) / "loader.json").write_text(json.dumps({"run": "loader", "scales": served.scales}))
    report(steps=len(served.scales), context=context, workers=2 * EPOCHS)


if __name__ == "__main__":
    main()
