"""What every framework's `mechanize` passes to `check_settings`, all valid."""

from typing import Any

SETTINGS: dict[str, Any] = {
    "run": "",
    "target": None,
    "project": None,
    "labels": None,
    "s_decay": 0.01,
    "betas": (0.9,),
    "s_init": 1e-8,
    "eps": 1e-8,
    "convention": "paper",
    "delta_layout": "delta",
    "on_outage": "local",
    "deadline": 2.0,
    "spill": None,
    "max_scale": None,
}
