"""What the demo trains: a fleet of mechanized runs, and for each the learning-rate sweep that a person would make."""

from collections.abc import Mapping
from dataclasses import dataclass

PROJECT = "demo"
WARMUP = 0.05  # of all steps

# Five values, half a decade apart, around the usual one for each BASE.
LEARNING_RATES = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "sgd": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "lion": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
}


@dataclass(frozen=True)
class Recipe:
    """A training run without its learning rate. The mechanized run and every value of its sweep share all of this."""

    model: str
    base: str
    batch: int
    steps: int
    seed: int = 0

    @property
    def run(self) -> str:
        """The run's name in the project."""
        return f"mnist/{self.model}-{self.base}-b{self.batch}"

    @property
    def labels(self) -> dict[str, str]:
        """The run's labels on the server."""
        return {"model": self.model, "base": self.base, "batch": str(self.batch), "seed": str(self.seed)}

    @property
    def cost(self) -> float:
        """A rough guess of the processor time, used to start long runs first."""
        return self.steps * (30 + self.batch) * (2.0 if self.model == "cnn" else 1.0)


@dataclass(frozen=True)
class Fleet:
    """Everything that a demo trains.

    Attributes:
        recipes: one for each mechanized run.
        learning_rates: the sweep's values for each BASE.
        victim: which of the recipes is killed midway.
        checkpoint_every: steps between two checkpoints.
        report_every: steps between two reports of a training process.
    """

    recipes: tuple[Recipe, ...]
    learning_rates: Mapping[str, tuple[float, ...]]
    victim: Recipe
    checkpoint_every: int
    report_every: int

    @property
    def kill_at(self) -> int:
        """The victim is killed at its first report at or after this step: midway, and well past a checkpoint."""
        checkpoint = self.victim.steps * 2 // 5 // self.checkpoint_every * self.checkpoint_every
        return checkpoint + self.checkpoint_every * 7 // 10


def full() -> Fleet:
    """Every BASE on both models, and AdamW on the MLP with three batch sizes: S grows with the batch."""
    steps = 1500
    recipes = (
        Recipe("cnn", "adamw", 64, steps),
        Recipe("cnn", "sgd", 64, steps),
        Recipe("cnn", "lion", 32, steps),
        Recipe("mlp", "adamw", 32, steps),
        Recipe("mlp", "adamw", 64, steps),
        Recipe("mlp", "adamw", 128, steps),
        Recipe("mlp", "sgd", 128, steps),
        Recipe("mlp", "lion", 64, steps),
    )
    return Fleet(recipes, LEARNING_RATES, victim=recipes[0], checkpoint_every=100, report_every=10)


def quick() -> Fleet:
    """Every part of the demo, in seconds. It has too few steps to judge an optimizer."""
    recipes = (
        Recipe("cnn", "lion", 64, 200),
        Recipe("mlp", "adamw", 32, 200),
        Recipe("mlp", "sgd", 128, 200),
    )
    rates = {base: values[1:4:2] for base, values in LEARNING_RATES.items()}
    return Fleet(recipes, rates, victim=recipes[0], checkpoint_every=50, report_every=5)


def schedule(step: int, steps: int) -> float:
    """The factor of the learning rate at a step, counted from 0: a linear warm-up, then a linear decay towards 0."""
    warmup = max(1, round(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))
