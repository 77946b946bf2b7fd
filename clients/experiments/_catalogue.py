"""The list of what is trained: tasks, arms, and the experiments made of them. This module only declares; it runs nothing.

A row is a task with a BASE. An arm is a way to set the row's learning rate: one value of a sweep, MECHANIC with some settings,
or a peer. All arms of a row share data, model, batches, steps, schedule and clipping.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal

Metric = Literal["accuracy", "loss"]
Setting = float | int | str

SEEDS: Final = (0, 1, 2)
WARMUP: Final = 0.05  # of all steps


def schedule(step: int, steps: int) -> float:
    """The factor of the learning rate at a step, counted from 0: a linear warm-up, then a linear decay towards 0."""
    warmup = max(1, round(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))


@dataclass(frozen=True)
class Task:
    """Data, a model and a budget.

    Attributes:
        name: family and name, "logistic/letter".
        data: the prepared set.
        model: its name in `_models`, with its sizes.
        batch: examples (or windows of text) per step.
        steps: optimizer steps, the same for every arm.
        metric: used to select and to report: accuracy in percent, or loss in nats per token.
        dropout: its probability in the model.
        clip: gradients are clipped to this norm; 0: no clipping.
        evaluated: how many examples (or windows) of the validation and the test set are used, at most.
    """

    name: str
    data: str
    model: str
    batch: int
    steps: int
    metric: Metric = "accuracy"
    dropout: float = 0.0
    clip: float = 1.0
    evaluated: int = 3000

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Arm:
    """A method, and the settings in which it differs from its defaults."""

    method: str
    settings: tuple[tuple[str, Setting], ...] = ()

    @property
    def name(self) -> str:
        """A part of a run's name: "mechanic--s_decay-0.1"."""
        return "--".join([self.method, *(f"{key}-{value}" for key, value in self.settings)])

    def applies(self, base: str) -> bool:
        """Whether the method's package supports this BASE."""
        return base in PEERS.get(self.method, (base,))


@dataclass(frozen=True)
class Row:
    """A task with a BASE. The arms are compared on it."""

    task: Task
    base: str

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.base}"


@dataclass(frozen=True)
class Training:
    """One training run: a row, an arm and a seed.

    Attributes:
        start: the S that a warm start begins with, once it is known; it is another training's result, so no part of the spec.
    """

    row: Row
    arm: Arm
    seed: int
    start: float | None = field(default=None, compare=False)

    @cached_property
    def key(self) -> str:
        """Its name in the results, and as a run on the server."""
        return f"{self.row.name}/{self.arm.name}/seed{self.seed}"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that decides its outcome, ready for JSON."""
        task = asdict(self.row.task)
        return {**task, "base": self.row.base, "arm": self.arm.name, "seed": self.seed}

    @property
    def source(self) -> "Training | None":
        """The training whose last S this one starts from: plain MECHANIC's on the same row, with the next seed."""
        if self.arm != WARM_ARM:
            return None
        return Training(self.row, MECHANIC, (self.seed + 1) % len(SEEDS))

    @property
    def labels(self) -> dict[str, str]:
        """The run's labels on the server."""
        task = self.row.task
        named = {"task": task.name, "base": self.row.base, "model": task.model, "batch": task.batch, "seed": self.seed}
        return {key: str(value) for key, value in {**named, **dict(self.arm.settings)}.items()}


@dataclass(frozen=True)
class Experiment:
    """Rows and arms that answer one question.

    Attributes:
        name: what `run NAME` takes.
        about: what it asks, in a line.
        paper: the table or figure that it repeats.
        rows: what is compared on.
        arms: what is compared, beside the sweep.
        sweep: whether the learning rate is swept too.
        sweep_seeds: the seeds of the sweep, where they differ.
    """

    name: str
    about: str
    paper: str
    rows: tuple[Row, ...]
    arms: tuple[Arm, ...]
    sweep: bool = True
    seeds: tuple[int, ...] = SEEDS
    sweep_seeds: tuple[int, ...] = SEEDS

    def trainings(self) -> Iterator[Training]:
        """All trainings, except those that `widened` adds to the sweeps."""
        for row in self.rows:
            if self.sweep:
                yield from (Training(row, sweep(rate), seed) for rate in start_of_sweep(row) for seed in self.sweep_seeds)
            for own in (Training(row, arm, seed) for arm in self.arms if arm.applies(row.base) for seed in self.seeds):
                if own.source is not None:
                    yield own.source
                yield own


# ---- arms

PEERS: Final[Mapping[str, tuple[str, ...]]] = {
    "dadaptation": ("sgd", "adamw", "lion"),
    "prodigy": ("adamw",),
    "schedulefree": ("sgd", "adamw"),
}
"""The BASEs that each peer supports; the other methods take any."""

MECHANIC: Final = Arm("mechanic")
PEER_ARMS: Final = (*map(Arm, PEERS), Arm("mechanic-pytorch"))
GROUP_ARMS: Final = tuple(Arm("mechanic", (("scale_groups", groups),)) for groups in ("param_group", "tensor"))
OPTION_ARMS: Final = (Arm("mechanic", (("convention", "optax"),)), Arm("mechanic", (("s_init", 1e-4),)))
WARM_ARM: Final = Arm("mechanic", (("warm_start", "next-seed"),))
TENSOR_START_ARM: Final = Arm("mechanic", (("scale_groups", "tensor"), ("s_init", 1e-4)))
START_ARMS: Final = (TENSOR_START_ARM, WARM_ARM)
DECAY_ARM: Final = Arm("mechanic", (("s_decay", 0.1),))


def sweep(rate: float) -> Arm:
    """BASE alone with a learning rate."""
    return Arm("sweep", (("lr", rate),))


# ---- sweeps: half a decade between two rates

_FIRST_RATES: Final[Mapping[tuple[str, str], int]] = {  # twice the decimal exponent of the lowest of five rates
    ("logistic", "sgd"): -3,
    ("logistic", "adamw"): -5,
    ("vision", "sgd"): -4,
    ("vision", "adamw"): -7,
    ("language", "adamw"): -6,
    ("language", "lion"): -8,
    ("translation", "adamw"): -6,
    ("finetune", "adamw"): -9,
    ("finetune", "lion"): -11,
}
_RATES: Final = 5
_WIDEST: Final = 12


def rate(exponent: int) -> float:
    """10^(exponent/2) in one digit: 1e-3, 3e-3, 1e-2, …"""
    decade, half = divmod(exponent, 2)
    return float(f"{3 if half else 1}e{decade}")


def start_of_sweep(row: Row) -> tuple[float, ...]:
    """Five rates around the usual one for the BASE."""
    first = _FIRST_RATES[row.task.family, row.base]
    return tuple(map(rate, range(first, first + _RATES)))


def widened(rates: Iterable[float], best: float) -> float | None:
    """The next rate to try if the best is at an edge of those tried; None if it is not, or if the sweep is wide enough."""
    every = [rate(exponent) for exponent in range(-20, 9)]
    places = sorted(every.index(tried) for tried in rates)
    place = every.index(best)
    if len(places) >= _WIDEST or places[0] < place < places[-1]:
        return None
    following = place - 1 if place == places[0] else place + 1
    return every[following] if 0 <= following < len(every) else None


# ---- tasks

KEEL: Final = (
    "letter", "penbased", "satimage", "optdigits", "texture", "segment", "vehicle", "vowel", "spambase", "magic", "splice",
    "german", "ionosphere", "sonar", "phoneme",
)  # fmt: skip
SKLEARN: Final = ("breast_cancer", "wine", "digits")
LOGISTIC: Final = tuple(
    Task(f"logistic/{name}", f"tabular-{name}", "linear", batch=64, steps=1000, clip=0.0) for name in (*KEEL, *SKLEARN)
)
MNIST_CNN: Final = Task("vision/mnist-cnn", "mnist", "cnn", batch=64, steps=1000)
VISION: Final = (
    MNIST_CNN,
    Task("vision/mnist-resnet", "mnist", "resnet", batch=64, steps=1000),
    Task("vision/digits-mlp", "digits", "mlp", batch=64, steps=1000),
)
BROWN: Final = Task("language/brown", "brown", "decoder-64x2", batch=16, steps=800, metric="loss")
AUSTEN: Final = replace(BROWN, name="language/austen", data="austen")
VERSES: Final = Task("translation/verses", "verses", "translator-64x2", batch=32, steps=800, metric="loss")
FINETUNE: Final = tuple(
    Task(f"finetune/{data}-dropout{dropout:g}", data, "minilm", batch=16, steps=500, dropout=dropout)
    for data in ("r8", "20news")
    for dropout in (0.0, 0.1)
)
BATCHES: Final = (4, 8, 16, 32)
SIZES: Final = ("32x1", "64x2", "128x4")
SCALE: Final = tuple(
    BROWN
    if (size, batch) == ("64x2", BROWN.batch)
    else replace(BROWN, name=f"language/brown-{size}-batch{batch}", model=f"decoder-{size}", batch=batch)
    for size in SIZES
    for batch in BATCHES
)


def _rows(tasks: Iterable[Task], *bases: str) -> tuple[Row, ...]:
    return tuple(Row(task, base) for task in tasks for base in bases)


LOGISTIC_ROWS: Final = _rows(LOGISTIC, "sgd", "adamw")
VISION_ROWS: Final = _rows(VISION, "sgd", "adamw")
LANGUAGE_ROWS: Final = (*_rows([BROWN], "adamw", "lion"), *_rows([AUSTEN, VERSES], "adamw"))
FINETUNE_ROWS: Final = _rows(FINETUNE, "adamw", "lion")
MAIN_ROWS: Final = (*LOGISTIC_ROWS, *VISION_ROWS, *LANGUAGE_ROWS, *FINETUNE_ROWS)
SCALE_ROWS: Final = _rows(SCALE, "adamw")
ABLATED_ROWS: Final = (Row(BROWN, "adamw"), Row(MNIST_CNN, "sgd"))

# ---- ablations (Tables 3 to 6); the default of each setting is MECHANIC as it is

ABLATIONS: Final[Mapping[str, tuple[Setting, ...]]] = {
    "base_lr": (1e-2, 1e-1, 1.0, 1e1, 1e2),
    "s_init": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4),
    "s_decay": (0.0, 1e-3, 1e-2, 1e-1, 1.0),
    "n": (2, 4, 6, 8),
}
DEFAULTS: Final[Mapping[str, Setting]] = {"base_lr": 1.0, "s_init": 1e-8, "s_decay": 1e-2, "n": 6}


def ablated(setting: str, value: Setting) -> Arm:
    """MECHANIC with one setting changed; plain MECHANIC at its default."""
    return MECHANIC if value == DEFAULTS[setting] else Arm("mechanic", ((setting, value),))


ABLATION_ARMS: Final = tuple(dict.fromkeys(ablated(name, value) for name, values in ABLATIONS.items() for value in values))

# ---- experiments

_MAIN: Final = (MECHANIC, *PEER_ARMS)
FULL: Final = (
    Experiment("logistic", "logistic regressions", "Figure 4", LOGISTIC_ROWS, _MAIN),
    Experiment("vision", "vision from scratch, λ = 0.01 and 0.1", "Table 2", VISION_ROWS, (*_MAIN, DECAY_ARM)),
    Experiment("language", "language models and translation", "Figures 2 and 5", LANGUAGE_ROWS, _MAIN),
    Experiment("finetune", "fine-tuning MiniLM, dropout 0 and 0.1", "Table 1", FINETUNE_ROWS, _MAIN),
    Experiment(
        "scale", "S against batch size and model size", "Figures 1 and 3", SCALE_ROWS, (MECHANIC,), sweep_seeds=SEEDS[:1]
    ),
    Experiment("ablations", "BASE's lr, s_init, λ, n", "Tables 3 to 6", ABLATED_ROWS, ABLATION_ARMS, sweep=False),
    Experiment("groups", "one S for all, per group, per tensor", "section 5's question", MAIN_ROWS, GROUP_ARMS, sweep=False),
    Experiment("options", "the authors' later form, a larger s_init", "none", MAIN_ROWS, OPTION_ARMS, sweep=False),
    Experiment("starts", "a warm start", "none", MAIN_ROWS, (WARM_ARM,), sweep=False),
    Experiment(
        "tensor-starts",
        "a larger s_init with one S per tensor; not for fine-tuning",
        "none",
        tuple(row for row in MAIN_ROWS if row not in FINETUNE_ROWS),
        (TENSOR_START_ARM,),
        sweep=False,
    ),
)
_QUICK_TASKS: Final = {
    "logistic/segment", "logistic/german", "logistic/sonar", "vision/digits-mlp", "vision/mnist-cnn", "language/brown",
    "language/brown-32x1-batch8", "language/brown-32x1-batch16", "translation/verses", "finetune/r8-dropout0",
}  # fmt: skip
_QUICK_EVALUATED: Final = 128
_QUICK_STEPS: Final = {"logistic": 300, "vision": 150, "language": 60, "translation": 40, "finetune": 8}


def _quickly(experiment: Experiment) -> Experiment:
    rows = tuple(
        Row(replace(row.task, steps=_QUICK_STEPS[row.task.family], evaluated=_QUICK_EVALUATED), row.base)
        for row in experiment.rows
        if row.task.name in _QUICK_TASKS
    )
    if experiment.name in ("groups", "options", "starts"):
        rows = rows[:1]
    return replace(experiment, rows=rows, seeds=SEEDS[:1], sweep_seeds=SEEDS[:1])


QUICK: Final = tuple(map(_quickly, FULL))
"""Every part of every experiment, in minutes. It has too few steps and seeds to judge the methods."""


def choose(names: Iterable[str], experiments: tuple[Experiment, ...]) -> tuple[Experiment, ...]:
    """The experiments of these names, in the list's order; "all" for all.

    Raises:
        ValueError: no experiment has that name.
    """
    wanted = set(names)
    known = {experiment.name for experiment in experiments}
    if unknown := wanted - known - {"all"}:
        raise ValueError(f"unknown experiment {', '.join(sorted(unknown))}; choose from all, {', '.join(sorted(known))}")
    return tuple(experiment for experiment in experiments if "all" in wanted or experiment.name in wanted)
