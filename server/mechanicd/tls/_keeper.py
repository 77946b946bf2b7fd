"""The last good pair of the files. Certificates live for months or for hours; a server that must restart for a new one is a
server that stops on the day when nobody is there."""

import logging
import threading
from datetime import UTC, datetime

from mechanicd.tls._files import Pair, TlsError, TlsFiles

log = logging.getLogger("mechanicd.tls")


class Keeper:
    """Keeps the last good pair of some files.

    Files that can't be used leave the pair from before in use: one is missing, or the key is still the old one's while somebody
    replaces both. The log says so, once for each change.

    Attributes:
        pair: the last good pair.

    Raises:
        TlsError: TLS_FILE_UNUSABLE, at first.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._stamps = files.stamps()
        self.pair = files.read()
        self._warn()

    def renewed(self) -> Pair | None:
        """The new pair if the files have changed and are good, else None. Cheap: to be asked at each handshake. Any thread."""
        with self._lock:
            stamps = self._files.stamps()
            if stamps == self._stamps:
                return None
            self._stamps = stamps
            try:
                self.pair = self._files.read()
            except TlsError as error:
                log.error("%s [%s]; the certificate from before stays in use until %s", error, error.reason, self.pair.expires)
                return None
            log.info("the certificate was read again; it is valid until %s", self.pair.expires)
            self._warn()
            return self.pair

    def _warn(self) -> None:
        if self.pair.expires < datetime.now(UTC):
            log.error("the certificate expired on %s; clients refuse it", self.pair.expires)
