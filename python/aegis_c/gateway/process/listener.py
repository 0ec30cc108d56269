"""The one listening socket: an address, a socket file, or one that systemd hands over."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from aegis_c.gateway.process import systemd
from aegis_c.gateway.settings import Settings

BACKLOG = 2048


def listen(settings: Settings) -> socket.socket:
    """A bound socket. Raises OSError."""
    given = systemd.listener()
    if given is not None:
        return given
    if settings.uds is not None:
        return _listen_unix(settings.uds)
    family, kind, proto, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_unix(path: Path) -> socket.socket:
    """A socket file for this user and group (0660); one that nobody listens on is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is not a socket", str(path))
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def close(listener: socket.socket, settings: Settings) -> None:
    """Stop listening; a socket file of ours goes away."""
    listener.close()
    if settings.uds is not None and not systemd.gave_a_listener():
        with contextlib.suppress(FileNotFoundError):
            settings.uds.unlink()


def address(listener: socket.socket) -> str:
    """Where callers find it, as a URL or ``unix:PATH``."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """True when it can only be reached from this machine."""
    if listener.family == socket.AF_UNIX:
        return True
    host: str = listener.getsockname()[0]
    return host.startswith("127.") or host == "::1"


def explain(error: OSError, settings: Settings) -> str:
    """Why it cannot listen, and what to do."""
    where = str(settings.uds) if settings.uds is not None else f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another process; stop it, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where}: not allowed for this user; choose a port above 1023 with --port"
    return f"cannot listen on {where}: {error.strerror or error}"
