"""A small keep-alive HTTP/1.1 client, one pool per upstream: asyncio.Protocol over llhttp.

Promises: no request can choose a host; connections are bounded; every wait ends (connect, first
byte, idle, total); a reply larger than its limits is refused; a body is only read as fast as it is
taken; a connection is used again only after a complete, self-delimiting reply that came after the
whole request was sent; a request is sent a second time only when a kept connection closed before
any byte of a reply (RFC 9112 section 9.3.1).

`connection.py` is one connection and its exchange, `origin.py` the pool of one upstream, `dial.py`
how a connection comes about, with `tls.py` and `proxy.py`.
"""

from aegis_c.gateway.hot.pool.connection import Connection
from aegis_c.gateway.hot.pool.errors import (
    ConnectFailed,
    ConnectTimeout,
    PoolBusy,
    PoolClosed,
    UpstreamError,
    UpstreamTimeout,
)
from aegis_c.gateway.hot.pool.origin import Pool, header_line

__all__ = [
    "ConnectFailed",
    "ConnectTimeout",
    "Connection",
    "Pool",
    "PoolBusy",
    "PoolClosed",
    "UpstreamError",
    "UpstreamTimeout",
    "header_line",
]
