"""How a trainer was started, without what looks like a secret: whoever may see the run may see that. Pure.

A value is hidden where its name says that it is secret, in any common form (`--token X`, `--token=X`, `MECHANICD_TOKEN=X`,
`db.password=X`, `{"api_key": "X"}`), and where it looks like one itself: a password in a URL, or a token of a well-known form.
Better hide too much: what is hidden reads ***, and the rest can still be pasted.
"""

import re
from collections.abc import Sequence
from typing import Final

from mechanicd.client._arguments import without_secrets

HIDDEN: Final = "***"
_LONGEST_NAME: Final = 100
_SECRET: Final = re.compile(
    r"(?:.*(?:password|passwd|passphrase)"
    r"|(?:.*[-_.:/])?(?:pass|passcode|passwort|pwd|secrets?|credentials?|bearer|auth|authorization|cookie|dsn|jwt|pat|key"
    r"|(?:(?:api|access|account|auth|client|encryption|master|private|secret|service|shared|signing|wandb|hf|openai|aws)[-_.]?)+key"
    r"|(?<!pad[-_])(?<!eos[-_])(?<!bos[-_])(?<!unk[-_])(?<!sep[-_])(?<!cls[-_])(?<!mask[-_])(?<!per[-_])(?<!stop[-_])token))"
    r"(?:[-_]?(?:value|\d+))?",
    re.IGNORECASE | re.DOTALL,
)
"""The name of an option or a variable whose value is secret. Its last word says so: --max-tokens and --token-file have none."""
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ASSIGNED: Final = re.compile(r"[+~]{0,2}(-{0,2}[A-Za-z_][\w.\-/:]*)=(.*)", re.DOTALL)
_NAMED: Final = re.compile(
    r"""(?<![\w.\-])([\w.\-]+)(?:["']?[\])]?\s{0,3}[=:]\s{0,3}(?:(?:bearer|basic)\s)?|["']\s{0,3},\s{0,3}(?=["']))""",
    re.IGNORECASE,
)
"""A name and what stands between it and its value inside a word, such as a query, JSON, or a program after -c."""
_VALUE: Final = re.compile(r"""(["'])(?:(?!\1).)*\1?|[^\s"',;&)}\]]+""", re.DOTALL)
_URL: Final = re.compile(r"([A-Za-z][\w+.\-]{0,30}://[^\s:@/]{0,100}):\S{0,500}@")
_LOGIN: Final = re.compile(r"(https?://)[^\s:@/]{1,500}@", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r"(?<=Bearer )\S+|(?<=Basic )\S{8,}|(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|eyJ[\w-]{8,2000}\.[\w-]{8,2000}\.[\w-]*"
    r"|(?:ghp|gho|ghu|ghs|ghr|github_pat|hf|glpat|xox[abprs]|sk|pk|rk|dapi|npm|pypi|AIza|ya29\.)[-_]?(?=[\w-]{0,60}[0-9A-Z])[\w-]{20,})"
)


def command_without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line, with *** for what looks like a secret."""
    shown: list[str] = []
    announced = False
    for word in words:
        shown.append(HIDDEN if announced and not word.startswith("-") else _shown(word))
        announced = word.startswith("-") and "=" not in word and _is_secret(word)
    return shown


def _is_secret(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and _SECRET.fullmatch(_CAMEL.sub("-", name.lstrip("-+~"))) is not None


def _shown(word: str) -> str:
    assigned = _ASSIGNED.fullmatch(word)
    if assigned and _is_secret(assigned[1]):
        return word[: len(word) - len(assigned[2])] + HIDDEN
    if "://" not in word:
        word = without_secrets(word)
    elif "@" in word:
        word = _LOGIN.sub(rf"\1{HIDDEN}@", _URL.sub(rf"\1:{HIDDEN}@", word))
    return _TOKEN.sub(HIDDEN, _values_hidden(word))


def _values_hidden(word: str) -> str:
    shown, end = "", 0
    for name in _NAMED.finditer(word):
        if name.start() >= end and _is_secret(name[1]) and (value := _VALUE.match(word, name.end())):
            quote = value[1] or ""
            shown, end = f"{shown}{word[end : name.end()]}{quote}{HIDDEN}{quote}", value.end()
    return shown + word[end:]
