"""The host's side of a step: it sends the scalars to the server, and checks the device's S against the tuner's bits."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from mechanicd.client import InvalidArgument, MechanicdError, Session, StepConflict
from mechanicd.client.framework import Run, postponed
from mechanicd.jax._float64 import host_bits, host_values
from mechanicd.jax._state import DISAGREED
from mechanicd.tuner import Reductions, Row, TunerConfig, TunerState

TINY: Final = float(np.finfo(np.float64).tiny)
log = logging.getLogger("mechanicd.jax")


def state_of(step: int, tuner: Any) -> TunerState:
    """The `TunerState` from the bits in a `MechanicState`."""
    values = host_values(tuner)  # (5, n, G)
    rows = tuple(Row(*(tuple(column) for column in group)) for group in values.transpose(2, 0, 1).tolist())
    return TunerState.from_rows(step, rows)


def bits_of(state: TunerState) -> NDArray[np.uint32]:
    """The inverse: uint32, shape (5, n, G, 2)."""
    return host_bits(np.array(state.rows).transpose(1, 2, 0))


def pack(step: jax.Array, told: jax.Array, tuner: jax.Array, sums: jax.Array, following: jax.Array) -> jax.Array:
    """Everything the host needs from a step, in one array: each array passed to a callback costs a copy from the device.

    Args:
        step, told: int32, shape ().
        tuner, sums, following: uint32, shapes (5, n, G, 2), (4, G, 2) and (G, 2).

    Returns:
        uint32, shape (2 + 10 n G + 8 G + 2 G,).
    """
    counts = lax.bitcast_convert_type(jnp.stack([step, told]), jnp.uint32)
    return jnp.concatenate([counts, *(part.reshape(-1) for part in (tuner, sums, following))])


def packed_size(config: TunerConfig) -> int:
    """The number of uint32 words of a packed step."""
    n, G = len(config.betas), len(config.scale_groups)
    return 2 + 10 * n * G + 8 * G + 2 * G


def unpack(config: TunerConfig, packed: Any) -> tuple[int, int, NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """The inverse, on the host: step, told, tuner, sums, following."""
    words, n, G = np.asarray(packed), len(config.betas), len(config.scale_groups)
    step, told = words[:2].astype(np.int32).tolist()
    tuner, sums, following = np.split(words[2:], (10 * n * G, 10 * n * G + 8 * G))
    return step, told, tuner.reshape(5, n, G, 2), sums.reshape(4, G, 2), following.reshape(-1, 2)


def told_of(run: Run) -> int:
    """What `told` begins at: 0, or what `{random}` in the run's name stands for, so that told − step keeps it.

    Raises:
        InvalidArgument: RUN_WORD_UNSET.
    """
    if not run.has_random:
        return 0
    if jax.process_count() > 1:
        raise InvalidArgument(
            "RUN_WORD_UNSET",
            "the run's name has the word {random}, which would be another one in each process of this training; use a word "
            "that is the same in all of them, such as {slurm_job_id}",
        )
    return _wrapped(int(run.random, 16))


def random_of(step: int, told: int) -> str:
    """The inverse, from the state after any step."""
    return f"{(told - step) % 2**32:08x}"


def _wrapped(count: int) -> int:
    """As int32."""
    return (count + 2**31) % 2**32 - 2**31


def same(host: Any, device: Any) -> bool:
    """Whether two states have the same bits, allowing for devices that flush subnormal float64 values to 0."""
    if host.tobytes() == np.asarray(device).tobytes():
        return True
    host, device = host_values(host), host_values(device)
    return bool(np.array_equal(np.where(np.abs(host) < TINY, 0.0, host), device))


class Reporter:
    """The host's side of the steps of one run. The program calls it in order, possibly more than once for a step.

    Args:
        run: the run. Its session opens at the first step, and again when a step does not follow the last one: then a
            checkpoint was restored, and the checkpoint wins.
    """

    def __init__(self, run: Run, config: TunerConfig) -> None:
        self.run = run
        self.config = config
        self.error: MechanicdError | None = None  # why the last step was rejected
        self._lock = threading.Lock()
        self._replies: dict[bytes, Any] = {}  # to the last calls
        self._most = 1

    def follow(self, packed: Any) -> NDArray[np.int32]:
        """Reports a step that the device has taken. Returns the new `told`.

        Raises:
            MechanicdError: the server rejected the step, or StepConflict (SCALE_MISMATCH): the device got other bits.
        """
        reply: NDArray[np.int32] = self._once(packed, self._follow)
        return reply

    def lead(self, packed: Any) -> NDArray[np.uint32]:
        """Takes a step on the host, and waits for the server as `on_outage` says. Returns the tuner's next state as bits.

        Raises:
            MechanicdError: the server rejected the step.
        """
        reply: NDArray[np.uint32] = self._once(packed, self._lead)
        return reply

    def count(self, packed: Any) -> NDArray[np.int32]:
        """Reports nothing, and returns the new `told`: on each process but the first."""
        return np.array(_wrapped(int(np.asarray(packed)[1]) + 1), np.int32)

    def keep_replies(self, most: int) -> None:
        """From now on a call that equals one of so many last ones gets its reply again."""
        self._most = max(self._most, most)

    def _once(self, packed: Any, take: Callable[..., NDArray[Any]]) -> Any:
        words = np.asarray(packed)
        with postponed, self._lock:
            call = words.tobytes()
            if call not in self._replies:
                try:
                    reply = take(*unpack(self.config, words))
                except MechanicdError as error:
                    self.error = error
                    raise
                self.error = None
                self._replies = dict([*self._replies.items(), (call, reply)][-self._most :])
            return self._replies[call]

    def _follow(self, step: int, told: int, tuner: Any, sums: Any, following: Any) -> NDArray[np.int32]:
        session = self._begin(step, told, tuner, sums)
        scales = session.finish(wait=False)
        if host_bits(scales).tobytes() != following.tobytes():
            raise StepConflict(
                "SCALE_MISMATCH",
                f"at step {step + 1} the device computed S = {host_values(following).tolist()[:3]}, but the host computed "
                f'{list(scales[:3])}; they must be equal bit for bit. On this device use on_outage="hold", which runs the '
                "tuner on the host",
            )
        return np.array(_wrapped(told + 1), np.int32)

    def _lead(self, step: int, told: int, tuner: Any, sums: Any, following: Any) -> NDArray[np.uint32]:
        session = self._begin(step, told, tuner, sums)
        session.finish()
        return bits_of(session.state)

    def _begin(self, step: int, told: int, tuner: Any, sums: Any) -> Session:
        """The session, at the device's state, with the step begun."""
        if np.isnan(host_values(tuner)).any():
            raise StepConflict("SCALE_MISMATCH", DISAGREED)
        session = self.run.session
        if session is None:
            self.run.resume_as(random_of(step, told))
            self.run.start = state_of(step, tuner)
        elif session.state.step != step or not same(bits_of(session.state), tuner):
            log.info("%s: restored the state of step %d after step %d", self.run.name, step, session.state.step)
            self.run.resume_as(random_of(step, told))
            self.run.restart(state_of(step, tuner))
        session = self.run.open(self.config)
        session.begin([Reductions(*group) for group in host_values(sums).T.tolist()])
        return session
