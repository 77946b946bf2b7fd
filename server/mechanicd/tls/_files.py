"""The PEM files of a server, and whether they fit together."""

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


class TlsError(Exception):
    """Files can't be used for TLS. `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pair:
    """What the files held at one moment, PEM.

    Attributes:
        client_ca: the authorities of clients; None: clients need no certificate.
        expires: the end of the certificate's validity.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files.

    Attributes:
        certificate: the server's certificate, with those between it and its authority after it.
        key: its private key, without a passphrase.
        client_ca: the authorities of clients; "": clients need no certificate.
    """

    certificate: str
    key: str
    client_ca: str = ""

    def context(self) -> ssl.SSLContext:
        """For a server that speaks TLS by Python's `ssl`. Raises as `load`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.load(context)
        return context

    def load(self, context: ssl.SSLContext) -> None:
        """Reads the files into a context, whose next handshakes use them.

        Raises:
            TlsError: TLS_FILE_UNUSABLE.
        """
        path = ""
        try:
            for path in filter(None, (self.certificate, self.key, self.client_ca)):
                Path(path).read_bytes()  # Python's own error does not say which file it means
            path = f"{self.certificate} and {self.key}"
            context.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
            if self.client_ca:
                path = self.client_ca
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:
            raise _unusable(path, error) from None

    def read(self) -> Pair:
        """What they hold now, checked: the key is the certificate's. Raises as `load`."""
        from cryptography import x509

        self.context()
        certificate = Path(self.certificate).read_bytes()
        authorities = Path(self.client_ca).read_bytes() if self.client_ca else None
        expires = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
        return Pair(certificate, Path(self.key).read_bytes(), authorities, expires)

    def stamps(self) -> tuple[object, ...]:
        """Equal as long as no file has changed."""
        return tuple(map(_stamp, filter(None, (self.certificate, self.key, self.client_ca))))


def _stamp(path: str) -> object:
    try:
        found = Path(path).stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino


def _unusable(path: str, error: OSError | ValueError) -> TlsError:
    if isinstance(error, ssl.SSLError):
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        why = "the key is not the certificate's" if mismatch else "no PEM of what it should hold"
    else:
        why = str(error.strerror) if isinstance(error, OSError) else str(error)
    return TlsError("TLS_FILE_UNUSABLE", f"{path}: {why}; give PEM files, the key without a passphrase")


def _no_passphrase() -> str:
    """Python would ask the terminal for one."""
    raise ValueError("the key has a passphrase")
