"""The settings of what stands behind the gateway: one upstream, or several targets.

Nothing of a request takes part in any of this: which hosts are ever contacted is decided here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from aegis_c.gateway.hot.pool.proxy import parse_proxy
from aegis_c.gateway.tables import Name, Seconds, Table


class Retry(Table):
    """When a call is asked again: never once a model may have begun to work on it."""

    attempts: int = Field(default=2, ge=0, le=10, description="Further attempts for one call.")
    statuses: frozenset[Annotated[int, Field(ge=400, le=599)]] = Field(
        default=frozenset({429}),
        description="Answers after which another attempt is made; a status of 500 and above is "
        "also tried again when it carries retry-after.",
    )
    backoff: Seconds = Field(
        default=0.25,
        description="The n-th attempt waits a random time up to this x 2^n, unless another target "
        "is free.",
    )
    max_wait: Seconds = Field(
        default=5.0, description="Longest wait; a longer retry-after goes to the caller."
    )
    budget: float = Field(
        default=0.1, ge=0, le=1, description="Retries per call on average, over all calls."
    )
    reserve: int = Field(
        default=10, ge=0, le=10_000, description="Retries that may come at once beyond that."
    )


class Breaker(Table):
    """When a target that fails is left alone for a while."""

    enabled: bool = True
    window: Seconds = Field(default=10.0, description="Seconds over which failures are counted.")
    min_calls: int = Field(default=20, ge=1, description="Fewer calls in a window say nothing.")
    failure_rate: float = Field(default=0.5, gt=0, le=1)
    open_for: Seconds = Field(
        default=5.0, description="Seconds until one call may try again; doubles up to open_max."
    )
    open_max: Seconds = 60.0


class Target(Table):
    """One of several upstreams; what is not said here is as in `upstream`."""

    name: Name = Field(description="The `provider` member of entries.")
    url: str
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    ca_file: Path | None = None
    weight: int = Field(default=1, ge=1, le=1000, description="Its share within its tier.")
    tier: int = Field(
        default=0, ge=0, le=99, description="Used when no target of a lower tier can be."
    )
    models: tuple[str, ...] = Field(
        default=("*",), min_length=1, description="The models it serves: patterns with * and ?."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        return check_url(value)

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        return check_secret(value)


class Upstream(Table):
    """The OpenAI-compatible server that answers; without ``url`` the built-in model is started."""

    url: str | None = Field(
        default=None,
        description="Base URL with its version path, for instance https://api.openai.com/v1, or "
        "unix:/run/model.sock:/v1.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="Sent upstream as bearer. The caller's own bearer is never passed on: "
        "without this key the upstream gets no authorization at all.",
    )
    api_key_file: Path | None = Field(
        default=None, description="A file that holds the key instead; read at start."
    )
    name: Name = Field(default="upstream", description="The `provider` member of entries.")
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities to trust; default: the system's."
    )
    proxy: str = Field(
        default="env",
        description="Forward proxy: http://host:port; 'none'; or 'env' for https_proxy, "
        "http_proxy, all_proxy and no_proxy (loopback is then never sent to a proxy).",
    )
    proxy_login: SecretStr | None = Field(
        default=None, description="user:password for that proxy (Basic)."
    )
    max_connections: int = Field(default=256, ge=1, le=65_536)
    connect_timeout: Seconds = Field(default=5.0, description="Seconds to a free connection.")
    first_byte_timeout: Seconds = Field(
        default=300.0, description="Seconds from the request sent to the reply's head."
    )
    idle_timeout: Seconds = Field(default=60.0, description="Seconds between two pieces of a body.")
    total_timeout: Seconds = Field(default=900.0, description="Seconds for one whole exchange.")
    heartbeat: Annotated[float, Field(ge=0, le=86_400)] = Field(
        default=15.0,
        description="Seconds of silence in a stream after which the caller gets an SSE comment; "
        "0: never.",
    )
    max_reply_bytes: int = Field(
        default=64 << 20, ge=1024, description="Largest plain reply; streams are not limited by it."
    )
    targets: tuple[Target, ...] = Field(
        default=(), description="Several upstreams, weighted and in tiers, instead of `url`."
    )
    retry: Retry = Retry()
    breaker: Breaker = Breaker()

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        return None if value is None else check_url(value)

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        return check_secret(value)

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, value: str) -> str:
        if value not in ("env", "none"):
            if "@" in value:
                raise ValueError("must not carry a user or password; use upstream.proxy_login")
            parse_proxy(value)
        return value

    @field_validator("proxy_login")
    @classmethod
    def _check_login(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(
            r"[\x20-\x39\x3b-\x7e]+:[\x20-\x7e]*", value.get_secret_value()
        ):
            raise ValueError("must be user:password in printable ASCII")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Upstream:
        if self.targets and (self.url or self.api_key or self.api_key_file):
            raise ValueError("give either url (with its key) or targets, not both")
        names = [target.name for target in self.targets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"targets: the name {name!r} is given twice")
        check_keys(self.api_key, self.api_key_file)
        for target in self.targets:
            check_keys(target.api_key, target.api_key_file)
        return self

    @property
    def configured(self) -> bool:
        """False: nothing is named that could answer, so the built-in model does."""
        return self.url is not None or bool(self.targets)

    def bearer(self) -> str | None:
        """The key to send, from the settings or from its file. Raises ValueError."""
        if self.api_key_file is not None:
            return read_secret(self.api_key_file)
        return None if self.api_key is None else self.api_key.get_secret_value()

    def of(self, target: Target) -> Upstream:
        """The settings of one target alone."""
        own = {"name", "url", "api_key", "api_key_file"}
        if target.ca_file is not None:
            own.add("ca_file")
        return self.model_copy(
            update={"targets": (), **{name: getattr(target, name) for name in own}}
        )


def check_url(value: str) -> str:
    """An upstream's base URL without a slash at its end. Raises ValueError."""
    if re.search(r"[\x00-\x20\x7f-\uffff]", value):
        raise ValueError("must be printable ASCII without spaces")
    if value.startswith("unix:"):
        if not re.fullmatch(r"unix:/[^:]+(:(/[^?#]*)?)?", value):
            raise ValueError("must be unix:/path/of/socket or unix:/path/of/socket:/base/path")
        return value.rstrip("/:")
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            "must be http://host[:port]/path, https://host[:port]/path or unix:/socket:/path"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry a user or password; use upstream.api_key")
    if parts.query or parts.fragment:
        raise ValueError("must not carry a query or a fragment")
    if parts.port == 0:
        raise ValueError("must not use port 0")
    return value.rstrip("/")


def check_secret(value: SecretStr | None) -> SecretStr | None:
    """A bearer that can be sent. Raises ValueError."""
    if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces, and not empty")
    return value


def check_keys(key: SecretStr | None, file: Path | None) -> None:
    """One of both at most, and a file that holds a key. Raises ValueError."""
    if key is not None and file is not None:
        raise ValueError("give either api_key or api_key_file, not both")
    if file is not None:
        read_secret(file)


def read_secret(path: Path, setting: str = "api_key_file") -> str:
    """The secret in a file, without the line's end. Raises ValueError."""
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting} {path} cannot be read: {error}") from None
    check_secret(SecretStr(text))
    return text
