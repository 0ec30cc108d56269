"""What can go wrong with an upstream, and whether a request may have reached it."""

from __future__ import annotations


class UpstreamError(Exception):
    """The upstream could not be used: down, broken, or not speaking HTTP."""

    #: True when not one byte of the request was sent: another upstream may be asked instead.
    unsent = False


class UpstreamTimeout(UpstreamError):
    """The upstream took longer than the settings allow."""


class ConnectFailed(UpstreamError):
    """No connection came about; nothing was sent."""

    unsent = True


class ConnectTimeout(UpstreamTimeout):
    """No connection came about in time; nothing was sent."""

    unsent = True


class PoolBusy(UpstreamError):
    """Every connection is in use and none became free in time; nothing was sent."""

    unsent = True


class PoolClosed(UpstreamError):
    """The gateway is shutting down: nothing is sent any more."""


class Stale(UpstreamError):
    """A kept connection turned out to be closed before any byte of the reply."""
