"""What the host does with a step: it brings the scalars to the server, and holds the device's S to the tuner's bits."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import jax
import jax.numpy as jnp
from jax import lax
from mechanicd.client import MechanicdError, Session, StepConflict
from mechanicd.client._run import Run
from mechanicd.jax._float64 import host_bits, host_values
from mechanicd.tuner import Reductions, TunerConfig, TunerState

TINY: Final = float(np.finfo(np.float64).tiny)
log = logging.getLogger("mechanicd.jax")


def state_of(config: TunerConfig, step: int, tuner: Any) -> TunerState:
    """The tuner's state as `mechanicd.tuner` has it, from the bits that a `MechanicState` carries."""
    values = host_values(tuner)  # (5, n, G)
    row = type(TunerState.initial(config).rows[0])
    rows = tuple(row(*(tuple(column) for column in group)) for group in values.transpose(2, 0, 1).tolist())
    return TunerState.from_rows(step, rows)


def bits_of(state: TunerState) -> NDArray[np.uint32]:
    """The inverse: uint32, shape (5, n, G, 2)."""
    return host_bits(np.array(state.rows).transpose(1, 2, 0))


def pack(step: jax.Array, told: jax.Array, tuner: jax.Array, sums: jax.Array, following: jax.Array) -> jax.Array:
    """All that the host needs of a step in one array, for each array that a callback takes costs it a copy from the device.

    Args:
        step, told: int32, shape ().
        tuner, sums, following: uint32, shapes (5, n, G, 2), (4, G, 2) and (G, 2).

    Returns:
        uint32, shape (2 + 10 n G + 8 G + 2 G,).
    """
    counts = lax.bitcast_convert_type(jnp.stack([step, told]), jnp.uint32)
    return jnp.concatenate([counts, *(part.reshape(-1) for part in (tuner, sums, following))])


def packed_size(config: TunerConfig) -> int:
    """How many uint32 a packed step has."""
    n, G = len(config.betas), len(config.scale_groups)
    return 2 + 10 * n * G + 8 * G + 2 * G


def unpack(config: TunerConfig, packed: Any) -> tuple[int, int, NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """The inverse, on the host: step, told, tuner, sums, following."""
    words, n, G = np.asarray(packed), len(config.betas), len(config.scale_groups)
    step, told = words[:2].astype(np.int32).tolist()
    tuner, sums, following = np.split(words[2:], (10 * n * G, 10 * n * G + 8 * G))
    return step, told, tuner.reshape(5, n, G, 2), sums.reshape(4, G, 2), following.reshape(-1, 2)


def same(host: Any, device: Any) -> bool:
    """Whether two states' bits are the same, where a device has 0 for values that are too small for a normal float64."""
    if host.tobytes() == np.asarray(device).tobytes():
        return True
    host, device = host_values(host), host_values(device)
    return bool(np.array_equal(np.where(np.abs(host) < TINY, 0.0, host), device))


class Reporter:
    """The host's part of the steps of one run. Called by the program in the order of the steps, each perhaps more than once.

    Args:
        run: the run; its session is opened at the first step, and again where a step does not follow the last one: a
            checkpoint was restored, and wins.
    """

    def __init__(self, run: Run, config: TunerConfig) -> None:
        self.run = run
        self.config = config
        self.error: MechanicdError | None = None  # why the last step was not told
        self._lock = threading.Lock()
        self._last: tuple[bytes, Any] = b"", None

    def follow(self, packed: Any) -> NDArray[np.int32]:
        """A step that the device has taken, with S_{t+1} as its bits. Returns how many steps were told so far.

        Raises:
            MechanicdError: what the server refuses; StepConflict, SCALE_MISMATCH, where the device has other bits.
        """
        reply: NDArray[np.int32] = self._once(packed, self._follow)
        return reply

    def lead(self, packed: Any) -> NDArray[np.uint32]:
        """A step that the host takes, with its server where the policy for outages wants so: the tuner's next state as bits.

        Raises:
            MechanicdError: what the server refuses.
        """
        reply: NDArray[np.uint32] = self._once(packed, self._lead)
        return reply

    def _once(self, packed: Any, take: Callable[..., NDArray[Any]]) -> Any:
        words = np.asarray(packed)
        with self._lock:
            if words.tobytes() != self._last[0]:
                try:
                    self._last = words.tobytes(), take(*unpack(self.config, words))
                except MechanicdError as error:
                    self.error = error
                    raise
                self.error = None
            return self._last[1]

    def _follow(self, step: int, told: int, tuner: Any, sums: Any, following: Any) -> NDArray[np.int32]:
        session = self._begin(step, tuner, sums)
        scales = session.finish(wait=False)
        if host_bits(scales).tobytes() != following.tobytes():
            raise StepConflict(
                "SCALE_MISMATCH",
                f"at step {step + 1} the device computes S = {host_values(following).tolist()[:3]}, the host "
                f'{list(scales[:3])}; they must be equal bit for bit: use on_outage="hold" on this device, whose tuner runs on '
                "the host",
            )
        return np.array(told + 1, np.int32)

    def _lead(self, step: int, told: int, tuner: Any, sums: Any, following: Any) -> NDArray[np.uint32]:
        session = self._begin(step, tuner, sums)
        session.finish()
        return bits_of(session.state)

    def _begin(self, step: int, tuner: Any, sums: Any) -> Session:
        """The session, at the state that the device has, and with the step begun."""
        session = self.run.session
        if session is None:
            self.run.start = state_of(self.config, step, tuner)
        elif session.state.step != step or not same(bits_of(session.state), tuner):
            log.info("%s: a state of step %d was restored, after step %d", self.run.name, step, session.state.step)
            self.run.restart(state_of(self.config, step, tuner))
        session = self.run.open(self.config)
        session.begin([Reductions(*group) for group in host_values(sums).T.tolist()])
        return session
