"""Words in a run's name that each process fills in: `run="sweep/{slurm_job_id}"`.

Jobs that share a script share its run name too, and of two processes that open one run the older is refused. So the name may
say what tells them apart.
"""

import os
import re
import secrets
import socket
from collections.abc import Mapping
from typing import Final

from mechanicd.client._errors import InvalidArgument

RANDOM: Final = "random"
WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "host": (),
    "rank": ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "slurm_job_id": ("SLURM_JOB_ID",),
    "slurm_array_task_id": ("SLURM_ARRAY_TASK_ID",),
    RANDOM: (),
}
"""Each word, and the environment variables of which the first that is set gives its value."""

_WORD: Final = re.compile(r"\{([^{}]*)\}")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]")


def new_random() -> str:
    """What `{random}` becomes in a new run: 8 hexadecimal digits."""
    return f"{secrets.randbits(32):08x}"


def has_random(template: object) -> bool:
    """Whether a name has the word `{random}`."""
    return isinstance(template, str) and f"{{{RANDOM}}}" in template


def filled(template: str, random: str) -> str:
    """The name with its words filled in; any other name as it is. What it is made of is checked later, with the whole name.

    Raises:
        InvalidArgument: RUN_WORD_UNKNOWN, RUN_WORD_UNSET.
    """
    if not isinstance(template, str) or "{" not in template:
        return template
    return _WORD.sub(lambda found: _value(template, found[1], random), template)


def _value(template: str, word: str, random: str) -> str:
    if word not in WORDS:
        known = ", ".join(f"{{{each}}}" for each in WORDS)
        raise InvalidArgument("RUN_WORD_UNKNOWN", f"run {template!r} has the word {{{word}}}; known are {known}")
    if word == RANDOM:
        return random
    if word == "host":
        return _NOT_IN_NAMES.sub("-", socket.gethostname()).strip("-._")[:63] or "host"
    found = next((value for name in WORDS[word] if (value := os.environ.get(name))), None)
    if found is None:
        *others, last = WORDS[word]
        needed = f"{', '.join(others)} or {last}" if others else last
        raise InvalidArgument(
            "RUN_WORD_UNSET",
            f"run {template!r} has the word {{{word}}}, the value of {needed} in the environment, but that is not set: start "
            "the job so that it is, set it, or use another word",
        )
    return found
