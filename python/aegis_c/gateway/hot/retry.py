"""Whether a call is asked again, and after how long.

A call that may have reached a model is never repeated: only one whose request was not sent (no
connection came about), or that the upstream itself put off (429, or any 5xx with retry-after; the
settings may add statuses). Waits grow exponentially with full jitter, and a retry-after is kept to.
A budget over all calls keeps retries from multiplying the load of an upstream that is in trouble.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis_c.gateway.upstream_settings import Retry


class Retries:
    """The rule and the budget of one gateway."""

    def __init__(self, settings: Retry, uniform: Callable[[float, float], float] | None = None):
        self._attempts = settings.attempts
        self._statuses = settings.statuses
        self._backoff = settings.backoff
        self._max_wait = settings.max_wait
        self._share = settings.budget
        self._most = max(1.0, float(settings.reserve))
        self._tokens = float(settings.reserve)
        self._uniform = uniform or random.uniform
        self.made = 0
        self.exhausted = 0  # retries not made because the budget was used up

    def call(self) -> None:
        """A call begins: it adds its share to the budget."""
        self._tokens = min(self._tokens + self._share, self._most)

    def put_off(self, status: int, headers: Mapping[bytes, bytes]) -> bool:
        """True when this error says that the call was not worked on and may come again."""
        if headers.get(b"x-should-retry") == b"false":
            return False
        if status in self._statuses:
            return True
        return status >= 500 and retry_after(headers) is not None

    def may(self, made: int) -> bool:
        """True when a call that was tried again ``made`` times may be once more."""
        if made >= self._attempts:
            return False
        if self._tokens < 1.0:
            self.exhausted += 1
            return False
        return True

    def take(self) -> None:
        """One retry is made."""
        self._tokens -= 1.0
        self.made += 1

    def wait(self, made: int, asked: float | None) -> float | None:
        """Seconds before the same target is asked again; None: longer than anybody waits.

        ``asked`` is the upstream's own retry-after.
        """
        if asked is None:
            return self._uniform(0.0, min(self._max_wait, self._backoff * 2.0**made))
        if asked > self._max_wait:
            return None
        return asked + self._uniform(0.0, min(self._backoff, self._max_wait - asked))


def retry_after(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds that the headers of an answer ask to wait; None when they do not say."""
    for name, unit in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        value = headers.get(name)
        if value is None or len(value) > 64:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if 0.0 <= seconds < float("inf"):
            return seconds
    try:
        date = parsedate_to_datetime(headers[b"retry-after"].decode("ascii"))
        return max(0.0, date.timestamp() - time.time())
    except (KeyError, ValueError, OverflowError, OSError):
        return None
