"""The store's errors, in three kinds: it can't be opened, it can't be used now, or what it holds doesn't fit the change.

    StoreError                what every caller may catch; only its subclasses are raised
    ├── StoreUnavailable      can't be read or written now; nothing changed, and a retry may work
    ├── StoreDamaged          works, but some of the bytes that it holds can't be read any more
    ├── StoreRejected         works, but rejects a value; nothing changed, and a retry does not help
    ├── StoreNotWritable      can't be written by this user, or is no database of this program
    ├── StoreInUse            another server holds this database
    ├── StoreMoved            the database's files were removed, replaced or moved while the server used them
    ├── StorePooled           a pooler in transaction mode stands before the database
    ├── SchemaTooNew          a newer mechanicd wrote it
    ├── SchemaTooOld          an older mechanicd wrote it, and it was opened read-only
    ├── StorePackageMissing   the engine's package is not installed
    ├── StoreNotPortable      the engine can't be written on this operating system
    └── StoreConflict         the store works, but somebody else was first; the caller must handle it
        ├── RunExists         a run of this name was created in the meantime
        └── OwnershipLost     another session or server took the run in the meantime

Each class that is raised has a stable `reason`, and a message that says what to do. Messages name hosts and files: they are for
the log and for whoever runs the server, never for its clients.
"""

from typing import ClassVar


class StoreError(Exception):
    """Base of the store's errors. Never raised itself."""

    reason: ClassVar[str]
    public: ClassVar[str] = "the store can't be written right now"
    """What a client is told: no hosts, no files."""


class StoreUnavailable(StoreError):
    """The database can't be read or written now: it is unreachable, full, or failing. Nothing changed."""

    reason = "STORE_UNAVAILABLE"


class StoreDamaged(StoreError):
    """Bytes that the store holds can't be read any more; others still can.

    Args:
        message: without names of hosts and files, so that clients may see it.
        branch, first_step, last_step: the steps of a history that are lost; 0 where it is not about steps.
    """

    reason = "STORE_DAMAGED"

    def __init__(self, message: str, branch: int = 0, first_step: int = 0, last_step: int = 0) -> None:
        super().__init__(message)
        self.branch, self.first_step, self.last_step = branch, first_step, last_step


class StoreRejected(StoreError):
    """The database works, but rejects a value that was to be written. Nothing changed."""

    reason = "STORE_REJECTED"


class StoreNotWritable(StoreError):
    """The database can't be written by this user, is read-only, or belongs to another program."""

    reason = "STORE_NOT_WRITABLE"


class StoreInUse(StoreError):
    """Another server holds this database."""

    reason = "STORE_IN_USE"


class StoreMoved(StoreError):
    """The files of the database were removed, replaced or moved while it was in use. Nothing is stored until they are back."""

    reason = "STORE_MOVED"
    public = "the database's files were removed or replaced while the server used them"


class StorePooled(StoreError):
    """A pooler changes the database session between transactions, so neither locks nor settings would hold."""

    reason = "STORE_POOLED"


class SchemaTooNew(StoreError):
    """A newer mechanicd wrote the database."""

    reason = "STORE_SCHEMA_TOO_NEW"


class SchemaTooOld(StoreError):
    """An older mechanicd wrote the database, and it was opened read-only, so it can't be migrated."""

    reason = "STORE_SCHEMA_TOO_OLD"


class StorePackageMissing(StoreError):
    """The engine's package is not installed."""

    reason = "PACKAGE_MISSING"


class StoreNotPortable(StoreError):
    """The engine needs what this operating system does not have."""

    reason = "PLATFORM_NOT_SUPPORTED"


class StoreConflict(StoreError):
    """The change doesn't fit what the store holds now, because somebody else was first. Nothing changed.

    This is no outage: the caller must read again, or give up. Never raised itself.
    """


class RunExists(StoreConflict):
    """A run of this name was created in the meantime."""

    reason = "RUN_EXISTS"


class OwnershipLost(StoreConflict):
    """The run's row has another epoch or session than expected: somebody else took the run."""

    reason = "OWNERSHIP_LOST"
