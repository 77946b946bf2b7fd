"""MECHANIC around any `torch.optim` optimizer, with the tuner at a server or in this process.

from mechanicd.torch import mechanize

opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0), run="bert/seed0", target="127.0.0.1:50051")
loss.backward()
opt.step()

_mechanize      the entry point: keywords and checks
_optimizer      the public class `Mechanized`: properties, checkpoints, closing
_step           one step, on one of three paths
_parameters     the parameters as this process holds them, and what the next step does to each
_passes         a step's two passes over the parameters, by `_reference` (any device) or `_triton` (CUDA `_kernels`)
_memory         what is kept of each parameter between two steps
_async_device   steps that a CUDA device takes before the host does, with `_triton_tuner`
_membership     with whom this process trains; `_team` has those processes, and `_distributed` what they add up
_collectives    what they say to each other; `_meeting`, `_fingerprint` and `_sharding`: how they find out that they fit
_groups         which parameters share one S
_checkpoint     what `state_dict()` adds to BASE's; `_legacy_checkpoints` reads older forms
"""

from mechanicd.client.framework import require_package

require_package("torch", extra="torch", reason="TORCH_MISSING")

from mechanicd.torch._mechanize import mechanize  # noqa: E402  # only once torch is known to be installed
from mechanicd.torch._optimizer import Mechanized  # noqa: E402

__all__ = ["Mechanized", "mechanize"]
