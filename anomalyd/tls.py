"""TLS whose certificates and keys may be replaced while the process runs."""

import ssl
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, Self

import structlog

_log = structlog.get_logger(__name__)

_Stamp = tuple[int, int, int]
_GONE: Final[_Stamp] = (0, 0, 0)


class FreshContext(ssl.SSLContext):
    """A context whose every new connection takes certificates and keys as they lie in their files then.

    A context that is made once keeps what it has read, and a certificate authority cannot be taken out of it again. So this one keeps only
    the way to make a context, and makes another one when a file has changed. What cannot be read, such as a key whose certificate has
    not been written yet, changes nothing and is looked at again with the next change. Connections that are open stay as they are.

    Args:
        make: makes a context out of the files.
        files: which are looked at.

    Raises:
        OSError: a file cannot be read or used (ssl.SSLError is one, too), or what `make` raises.
    """

    def __new__(cls, *_: object) -> Self:  # noqa: D102  SSLContext is made here
        # Of its own it trusts nobody and knows no certificate: whatever goes past `wrap_bio` and `wrap_socket` fails.
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, make: Callable[[], ssl.SSLContext], files: Collection[Path]) -> None:
        self._make = make
        self._files = tuple(files)
        self._stamps = self._look()
        self._made = make()
        self.check_hostname = self._made.check_hostname

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:  # noqa: ANN401  those of SSLContext
        """As of SSLContext: what asyncio begins each connection with, at either end of it."""
        return self.current().wrap_bio(*arguments, **named)

    def wrap_socket(self, *arguments: Any, **named: Any) -> ssl.SSLSocket:  # noqa: ANN401  those of SSLContext
        """As of SSLContext."""
        return self.current().wrap_socket(*arguments, **named)

    def current(self) -> ssl.SSLContext:
        """The context of the files as they are now."""
        stamps = self._look()  # before they are read, so that what changes meanwhile counts as another change
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._made = self._make()
                _log.info("tls_files_read", files=[str(file) for file in self._files])
            except Exception as error:  # noqa: BLE001  whatever it is, the one before still serves
                _log.warning("tls_files_unusable", files=[str(file) for file in self._files], reason=str(error))
        return self._made

    def _look(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(file) for file in self._files)


def unreached(error: Exception) -> str:
    """Why an HTTP server could not be asked, in one line: aiohttp's own text shows our context, with its address in memory."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    if cause is None:
        return str(error) or type(error).__name__
    why = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or cause
    return f"{getattr(error, 'host', '')}:{getattr(error, 'port', '')}: {why}"


def _stamp(file: Path) -> _Stamp:
    """What changes when a file is written anew, or, in Kubernetes, when the link on the way to it goes elsewhere."""
    try:
        found = file.stat()
    except OSError:
        return _GONE
    return found.st_mtime_ns, found.st_size, found.st_ino
