"""One line of the tables of docs/bases.md."""

import math
from dataclasses import dataclass


@dataclass
class Finding:
    """What became of it: right, refused (with the reason), untried or wrong, and why."""

    name: str
    verdict: str
    why: str
    losses: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    resumes: str = ""

    def row(self) -> str:
        """Its line of the table."""
        start, alone, mechanized = self.losses
        losses = "" if math.isnan(start) else f"{alone:.2g} · {mechanized:.2g}"
        return f"| {self.name} | {self.verdict} | {losses} | {self.resumes} | {self.why} |"
