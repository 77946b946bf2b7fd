"""MECHANIC around any `torch.optim` optimizer; its tuner is a server's, or this process's own.

    from mechanicd.torch import mechanize

    opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0), run="bert/seed0", target="127.0.0.1:50051")
    loss.backward()
    opt.step()

`_mechanize` checks the settings, `_optimizer` is the step, `_reference` its two passes over the parameters, `_groups` says
which parameters share one S, `client._run` opens the session when the first step needs it, and `_checkpoint` is what
`state_dict()` adds to BASE's.
"""

from mechanicd.torch._missing import require_torch

require_torch()

from mechanicd.torch._mechanize import mechanize  # noqa: E402  # only once torch is known to be there
from mechanicd.torch._optimizer import Mechanized  # noqa: E402

__all__ = ["Mechanized", "mechanize"]
