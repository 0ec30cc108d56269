"""What systemd and a service agree on: a socket handed over, and news of the service's state.

The protocols are those of sd_listen_fds(3) and sd_notify(3); without systemd nothing happens.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

_FIRST: Final = 3  # the first descriptor that is handed over


def listener() -> socket.socket | None:
    """The socket that systemd listens on for this process. Raises OSError when unusable."""
    if not gave_a_listener():
        return None
    count = os.environ.get("LISTEN_FDS", "")
    if count != "1":
        raise OSError(f"systemd hands over {count} sockets (LISTEN_FDS), but exactly 1 is expected")
    given = socket.socket(fileno=_FIRST)
    given.setblocking(False)
    os.set_inheritable(_FIRST, False)
    if not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError("the socket that systemd hands over does not listen (Accept=no is needed)")
    return given


def gave_a_listener() -> bool:
    """Whether the environment says that sockets were handed to this very process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def notify(state: str) -> None:
    """Tell the service manager, when there is one, for instance ``READY=1``."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            pass  # a manager that went away cannot be told


def notify_reloading() -> None:
    """A reload begins; READY=1 ends it."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float | None:
    """How often WATCHDOG=1 is to be sent: half of what the manager allows; None: not at all."""
    pid = os.environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None
    try:
        allowed = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return allowed / 2_000_000 if allowed > 0 else None
