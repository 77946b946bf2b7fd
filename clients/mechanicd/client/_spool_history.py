"""What a spool file tells: the sessions of one run, where each began, its steps, and how it ended."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from google.protobuf.message import DecodeError, Message

from mechanicd.client import _spool_format
from mechanicd.client._errors import ConfigMismatch, MechanicdError, ResumeError
from mechanicd.client._spool_format import Record
from mechanicd.client._wire import config_in
from mechanicd.tuner import Reductions, Tuner, TunerConfig, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Opening:
    """One session.

    Attributes:
        offset: of its record in the file.
        begin: the offset of what follows that.
        after: the step that it starts after.
        last: its last step; `after` if it took none.
        stage: how many times the run had been rewound once this session began.
        session: what the server calls it, if the steps are those of an outage; else 0.
        closed: its end; None if it was killed, or goes on.
    """

    offset: int
    begin: int
    after: int
    last: int
    stage: int
    session: int = 0
    closed: tuner_service_pb2.CloseSessionRequest | None = None


@dataclass(frozen=True, slots=True)
class History:
    """A spool file.

    Attributes:
        name: `projects/{project}/runs/{run}`; "" where no session has begun.
        config: the tuner's settings.
        openings: the sessions in their order.
        end: where the records end.
        torn: how many bytes follow that are no record.
    """

    path: Path
    name: str = ""
    config: TunerConfig = field(default_factory=TunerConfig)
    openings: tuple[Opening, ...] = ()
    end: int = 0
    torn: int = 0

    @property
    def last(self) -> int:
        """The run's last step."""
        return self.openings[-1].last if self.openings else 0

    @property
    def steps(self) -> int:
        """How many steps the file has, those that a rewind abandoned too."""
        return sum(opening.last - opening.after for opening in self.openings)


def read_history(file: BinaryIO, path: Path) -> History:
    """Reads a spool file once, and checks it.

    Raises:
        MechanicdError: SPOOL_FOREIGN, SPOOL_VERSION, SPOOL_DAMAGED.
    """
    size = file.seek(0, 2)
    name, config, openings, taken = "", TunerConfig(), list[Opening](), 0
    end = len(_spool_format.HEADER) if _spool_format.check_header(str(path), file) else 0
    for record in _spool_format.records(file, end, size) if end else ():
        end = record.end
        if record.kind == _spool_format.OPENED:
            request = _read(tuner_service_pb2.OpenSessionRequest, record, str(path))
            if name not in ("", request.name):
                raise MechanicdError("SPOOL_FOREIGN", f"{path} has steps of {name} and of {request.name}; a file is of one run")
            name, config = request.name, config_in(request.config)
            after = start_of(request, config).step
            before = _with_steps(openings, taken) or Opening(0, 0, after, after, 0)
            stage, taken = before.stage + (after < before.last), 0
            openings.append(Opening(record.offset, record.end, after, after, stage, request.session))
        elif record.kind == _spool_format.STEP and openings:
            taken += 1
        elif record.kind == _spool_format.CLOSED and openings:
            closed = _read(tuner_service_pb2.CloseSessionRequest, record, str(path))
            openings[-1] = replace(openings[-1], closed=closed)
        elif record.kind != _spool_format.SYNCED:
            raise MechanicdError(
                "SPOOL_VERSION", f"{path} has a record of kind {record.kind} at byte {record.offset:,}; upgrade mechanicd"
            )
    _with_steps(openings, taken)
    _spool_format.check_tail(str(path), file, end)
    return History(path, name, config, tuple(openings), end, max(0, size - end))


def _read(kind: type[M], record: Record, name: str) -> M:
    """The message of a record.

    Raises:
        MechanicdError: SPOOL_DAMAGED: it is another than the record's kind says, although its checksum is right.
    """
    try:
        return kind.FromString(record.message)
    except DecodeError:
        raise MechanicdError(
            "SPOOL_DAMAGED",
            f"{name} has no {kind.__name__} at byte {record.offset:,}, where one belongs; what wrote the file was no mechanicd",
        ) from None


def _with_steps(openings: list[Opening], taken: int) -> Opening | None:
    """Adds the steps that the last session has taken. Returns it; None where there is none."""
    if not openings:
        return None
    openings[-1] = replace(openings[-1], last=openings[-1].after + taken)
    return openings[-1]


def start_of(request: tuner_service_pb2.OpenSessionRequest, config: TunerConfig) -> TunerState:
    """The tuner's state at which a session of a spool file begins: at the first step, or at one that the request holds.

    Raises:
        InvalidArgument: INVALID_TUNER_STATE.
    """
    return TunerState.from_bytes(request.tuner_state, config) if request.tuner_state else TunerState.initial(config)


def steps(file: BinaryIO, opening: Opening) -> Iterator[resources_pb2.StepRecord]:
    """The steps of a session, in their order.

    Raises:
        MechanicdError: SPOOL_DAMAGED: a step is missing.
    """
    expected = opening.after
    for record in _spool_format.records(file, opening.begin):
        if expected == opening.last or record.kind == _spool_format.OPENED:
            return
        if record.kind == _spool_format.STEP:
            step = _read(resources_pb2.StepRecord, record, file.name)
            expected += 1
            if step.step != expected:
                raise MechanicdError("SPOOL_DAMAGED", f"{file.name} has step {step.step} where step {expected} belongs")
            yield step


def opened(file: BinaryIO, opening: Opening) -> tuner_service_pb2.OpenSessionRequest:
    """The record with which a session began."""
    record = next(_spool_format.records(file, opening.offset))
    return _read(tuner_service_pb2.OpenSessionRequest, record, file.name)


def advanced(tuner: Tuner, state: TunerState, step: resources_pb2.StepRecord) -> TunerState:
    """The tuner's state after a step of the file.

    Raises:
        MechanicdError: SPOOL_DAMAGED, or what the tuner refuses: no trainer has taken such a step.
    """
    if step.outcome == resources_pb2.STEP_OUTCOME_HELD:
        return tuner.hold(state)
    sent = step.reductions
    fields = (sent.delta_dot_g, sent.delta_dot_x, sent.g_norm_sq, sent.x_norm_sq)
    if len(set(map(len, fields))) != 1:
        counts = ", ".join(str(len(field)) for field in fields)
        raise MechanicdError("SPOOL_DAMAGED", f"step {step.step} has {counts} scalars; it needs one of each for a scale group")
    return tuner.update(state, [Reductions(*group) for group in zip(*fields, strict=True)])


def state_after(file: BinaryIO, history: History, step: int) -> TunerState | None:
    """The tuner's state after a step of the run's current history, by taking its steps again; None if the file lacks it."""
    opening = next((each for each in reversed(history.openings) if each.after <= step), None)
    if opening is None or step > opening.last:
        return None
    tuner, state = Tuner(history.config), start_of(opened(file, opening), history.config)
    for each in steps(file, opening):
        if state.step == step:
            break
        state = advanced(tuner, state, each)
    return state


def start_in(path: Path, name: str, config: TunerConfig, start: int | TunerState | None) -> tuple[int | None, TunerState]:
    """Where a new session on a spool file starts.

    Args:
        start: as `open_spool` takes it.

    Returns:
        The file's last step, None where it has no session yet; and the state to start at.

    Raises:
        ConfigMismatch: the file has the run with another config.
        ResumeError: RESUME_STEP_UNKNOWN.
        MechanicdError: SPOOL_FOREIGN, SPOOL_VERSION, SPOOL_DAMAGED.
    """
    with path.open("rb") as file:
        history = read_history(file, path)
        if history.name not in ("", name):
            raise MechanicdError("SPOOL_FOREIGN", f"{path} has the run {history.name}, not {name}; give it back its own name")
        if history.openings and history.config != config:
            raise config_mismatch(str(path), history.config, config)
        last = history.last if history.openings else None
        if isinstance(start, TunerState):
            return last, start
        step = history.last if start is None else start
        state = state_after(file, history, step) if step else TunerState.initial(config)
    if state is None:
        raise ResumeError(
            "RESUME_STEP_UNKNOWN",
            f"asked to start after step {step}, but {path} does not have it (its last step is {history.last}); start at a "
            "checkpoint's state, or after a step that it has",
        )
    return last, state


def config_mismatch(where: str, stored: TunerConfig, given: TunerConfig) -> ConfigMismatch:
    """The run exists with another config."""
    left, right = asdict(stored), asdict(given)
    differences = {field: f"{left[field]} ≠ {right[field]}" for field in left if left[field] != right[field]}
    listed = "; ".join(f"{field}: {text:.200}" for field, text in differences.items())
    return ConfigMismatch(
        "CONFIG_MISMATCH",
        f"{where} has the run with a different config (stored ≠ given: {listed}); use the stored config or another run name",
        differences,
    )
