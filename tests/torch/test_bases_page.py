"""docs/bases.md: torch's own optimizers are tried here in short, and the tables have every optimizer, none of them wrong."""

import inspect
import re
from importlib import metadata

import pytest
import torch

from mechanicd.client import InvalidArgument
from tests.torch import bases

TORCHS = sorted(
    (cls for cls in vars(torch.optim).values() if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)),
    key=lambda cls: cls.__name__,
)
REFUSED = {"LBFGS": "BASE_KEEPS_WEIGHTS", "SparseAdam": "SPARSE_GRADIENT"}
OPTIONS = [{}, {"maximize": True}, {"foreach": True}, {"fused": True}]
HEADING = re.compile(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def cases():
    for cls in TORCHS:
        takes = inspect.signature(cls).parameters
        for options in OPTIONS:
            if cls is torch.optim.Optimizer or not set(options) <= set(takes):
                continue

            def make(model, lr, cls=cls, options=options):
                return cls(model.parameters(), lr=lr, **options)

            loop = "closure" if cls is torch.optim.LBFGS else "plain"
            name = f"{cls.__name__}({', '.join(options)})"
            up = bool(options.get("maximize"))
            yield bases.Case(name, make, loop, biases=cls is not torch.optim.Muon, maximize=up)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_each_of_torch_learns_and_resumes_or_is_refused(case):
    refused = REFUSED.get(case.name.partition("(")[0])
    if refused is not None:
        with pytest.raises(InvalidArgument, match=refused):
            bases.Training(case, 1.0, mechanized=True)
        return
    training = bases.Training(case, 1.0, mechanized=True)
    start = training.run(0)
    assert training.run(60) < 0.9 * start
    assert training.opt.scale > 2.0 * bases.S_INIT
    assert bases.resumes(case, mechanized=True) == "yes"


@pytest.fixture(scope="module")
def tables():
    """The rows of each table, by its heading."""
    text = bases.PAGE.read_text().partition(bases.BEGIN)[2]
    assert text, "make it: python -m tests.torch.bases"
    rows = {title: re.findall(r"^\| (\w+) \| (.*?) \|", body, re.MULTILINE) for title, body in HEADING.findall(text)}
    return {title: dict(found) for title, found in rows.items()}


def test_the_tables_have_every_optimizer(tables):
    ours, theirs = tables
    assert re.fullmatch(r"torch\.optim \d+\.\d+\.\d+", ours)
    names = {cls.__name__ for cls in TORCHS if cls is not torch.optim.Optimizer}
    assert names - {"BASE"} == set(tables[ours]) - {"BASE"}
    pytest.importorskip(bases.PACKAGE)
    assert theirs == f"{bases.PACKAGE} {metadata.version(bases.PACKAGE)}"
    assert {case.name for case in bases.package_cases()} == set(tables[theirs]) - {"BASE"}


def test_no_optimizer_is_wrong(tables):
    for rows in tables.values():
        for name, verdict in rows.items():
            assert name == "BASE" or verdict.startswith(("right", "refused", "untried")), name
    assert sum(verdict.startswith(("right", "refused")) for _, verdict in list(tables.values())[1].items()) >= 120
