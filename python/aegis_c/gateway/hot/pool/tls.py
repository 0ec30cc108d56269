"""TLS to one upstream: verified certificates, and sessions that later connections resume.

Event loops make the TLS object themselves and offer no place for a session, but all of them ask
the context for it. So the context hands out the sessions. A session is used once, as RFC 8446
section C.4 asks of TLS 1.3 tickets, and replaced by the one that its connection was given.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from pathlib import Path
from typing import Any, Final

SESSIONS: Final = 64  # sessions kept at most


class ClientContext(ssl.SSLContext):
    """For connections to one host alone: a session must never meet another host."""

    _sessions: deque[ssl.SSLSession]
    resumed: int  # connections that began with a session the server accepted

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """The TLS object of a new connection, with a session when there is one."""
        if self._sessions:
            kwargs["session"] = self._sessions.pop()
        return super().wrap_bio(*args, **kwargs)

    def keep(self, transport: asyncio.Transport) -> None:
        """Take over a connection's session, once a reply has come (tickets arrive before it)."""
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is None:  # closed meanwhile
            return
        if tls.session_reused:
            self.resumed += 1
        session = tls.session
        if session is not None and (session.has_ticket or session.id):
            self._sessions.append(session)


def client_context(ca_file: Path | None) -> ClientContext:
    """Certificates and host names are checked, against the system's authorities or a file's."""
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context._sessions = deque(maxlen=SESSIONS)
    context.resumed = 0
    if ca_file is not None:
        context.load_verify_locations(str(ca_file))
    else:
        context.load_default_certs()
    context.set_alpn_protocols(["http/1.1"])
    return context
