"""Settings of the gateway: one TOML file, then ``AEGIS_*`` variables on top.

A nested key is written ``AEGIS_<TABLE>__<KEY>`` (``AEGIS_UPSTREAM__URL``). Precedence: arguments,
environment, file, defaults. Unknown keys are refused in both places, so that a typing mistake can
never leave a limit at its default.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import os
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from aegis_c.gateway.alert_settings import AlertSettings
from aegis_c.gateway.limits_settings import LimitSet, ModelLimits, Price, Units
from aegis_c.gateway.settings_file import Lines, SettingsError, variable_of
from aegis_c.gateway.tables import Name, Seconds, Table
from aegis_c.gateway.upstream_settings import Upstream

__all__ = ["Settings", "SettingsError", "load_settings"]

#: Largest entry one call can make, in bytes; the caps in ``gateway/evidence.py`` guarantee it.
ENTRY_MAX = 4096

#: Variables with our prefix that belong to the build and to ``./dev``, not to the gateway.
TOOL_VARIABLES = frozenset(
    {
        "AEGIS_CONFIG",
        "AEGIS_COVERAGE",
        "AEGIS_DEBUG",
        "AEGIS_IO",
        "AEGIS_IO_RULES",
        "AEGIS_NO_APT",
        "AEGIS_OPENSSL",
        "AEGIS_PYTHON",
        "AEGIS_SANITIZE",
        "AEGIS_TEST_SEED",
        "AEGIS_WERROR",
    }
)

_OTEL = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

#: Where and how the gateway runs and is watched: changed by a restart only, no part of the policy.
PROCESS = ("host", "port", "uds", "data", "workers", "otel")

Role = Literal["caller", "auditor", "admin"]


class _Misfit(ValueError):
    """One setting does not go with the others."""

    def __init__(self, path: tuple[str | int, ...], reason: str) -> None:
        super().__init__(reason)
        self.path = path


def _proxy(value: object) -> object:
    """A network, or the word for the Unix socket; one message for both."""
    if value == "unix" or not isinstance(value, str):
        return value
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}; expected a network or 'unix'") from None


Proxy = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network | Literal["unix"], BeforeValidator(_proxy)
]


class ApiKey(Table):
    """One key of a caller, known by its SHA-256 alone."""

    id: Name = Field(description="The `key` member of entries; never the key itself.")
    sha256: str = Field(description="Lower-case hex SHA-256 of the key's bytes.")
    tenant: Name
    roles: frozenset[Role] = Field(
        default=frozenset({"caller"}),
        description="caller: model calls and own receipts; auditor: reads the whole ledger; "
        "admin: everything.",
    )

    @field_validator("sha256")
    @classmethod
    def _check_digest(cls, value: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError(
                "must be the 64 lower-case hex digits of the key's SHA-256 "
                "(printf %s KEY | sha256sum), never the key"
            )
        return value


class Limits(Table):
    """How large a request may be, what one worker takes on at a time, and who may use how much."""

    max_body_bytes: int = Field(default=16 << 20, ge=1024, le=1 << 30)
    max_json_depth: int = Field(default=64, ge=4, le=512)
    max_in_flight: int = Field(default=512, ge=1, le=65_536)
    admission_deadline: Annotated[float, Field(ge=0, le=60)] = Field(
        default=2.0, description="Seconds a call may wait for room before it gets 503."
    )
    head_timeout: Seconds = Field(
        default=10.0, description="Seconds for a request's head, and for a new connection's first."
    )
    body_timeout: Seconds = Field(default=30.0, description="Seconds for a request's whole body.")
    background_queue: int = Field(
        default=4096, ge=1, le=1 << 20, description="Jobs; above it no call is admitted."
    )
    background_workers: int = Field(default=2, ge=1, le=64)

    key: LimitSet = Field(default=LimitSet(), description="For each key by itself.")
    tenant: LimitSet = Field(default=LimitSet(), description="For all keys of a tenant.")
    model: LimitSet = Field(default=LimitSet(), description="For all calls of a model.")
    ip: LimitSet = Field(default=LimitSet(), description="For each address (IPv6: each /64).")
    total: LimitSet = Field(default=LimitSet(), description="For all calls together.")
    keys: dict[Name, LimitSet] = Field(
        default={}, description="Instead of `limits.key`, for the key of this id."
    )
    tenants: dict[Name, LimitSet] = Field(
        default={}, description="Instead of `limits.tenant`, for this tenant."
    )
    models: dict[str, ModelLimits] = Field(
        default={},
        description="Prices and longest output of a model; limits that it gives "
        "stand instead of `limits.model`.",
    )
    reserve: Literal["p95", "max"] = Field(
        default="p95",
        description="Output tokens charged before a call: what 95 of 100 answers of that model "
        "needed (never more than the caller's maximum), or the caller's whole maximum.",
    )
    max_output: Units = Field(
        default=4096, description="The maximum of a call that sets none, of a model without one."
    )
    input_price: Price | None = Field(default=None, description="Of models that are not listed.")
    output_price: Price | None = Field(default=None, description="Of models that are not listed.")
    slots: int = Field(
        default=1 << 18, ge=1024, le=1 << 28, description="Of 16 bytes; a live key takes one."
    )
    when_full: Literal["refuse", "allow"] = Field(
        default="refuse", description="A call whose key finds no slot among live ones."
    )
    directory: Path | None = Field(
        default=None, description="Of the shared tables; default: /dev/shm/aegis-<uid>."
    )

    def any(self) -> bool:
        """True when something is limited for somebody."""
        return any(one.limits_something() for one in self._sets())

    def lasting(self) -> bool:
        """True when a bucket needs an hour or more to drain."""
        buckets = (rate.bucket() for one in self._sets() for rate in one.all_rates())
        return any(burst * seconds >= 3600 * rate for rate, seconds, burst in buckets)

    def _sets(self) -> list[LimitSet]:
        others = (*self.keys.values(), *self.tenants.values(), *self.models.values())
        return [self.key, self.tenant, self.model, self.ip, self.total, *others]

    @model_validator(mode="after")
    def _check_prices(self) -> Limits:
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("give both input_price and output_price, or neither")
        return self

    @model_validator(mode="after")
    def _check_count(self) -> Limits:
        most = len(self.total.all_rates()) + len(self.ip.all_rates())
        for one, others in (
            (self.key, self.keys),
            (self.tenant, self.tenants),
            (self.model, self.models),
        ):
            most += max(len(each.all_rates()) for each in (one, *others.values()))
        if most > 16:
            raise ValueError(f"up to {most} rates would apply to one call; at most 16 are possible")
        return self


class EvidenceSettings(Table):
    """How calls are recorded."""

    mode: Literal["background", "durable", "write-ahead"] = Field(
        default="background",
        description="background: submitted before the reply, which never waits. durable: the "
        "reply waits until its entry is on disk. write-ahead: an intent is on disk before the "
        "upstream is asked.",
    )
    on_failure: Literal["refuse", "serve"] = Field(
        default="refuse",
        description="When the ledger cannot record: refuse calls, or serve and log the gap.",
    )
    analysis: Literal["off", "findings", "all"] = Field(
        default="findings",
        description="Which analyses get an entry of their own; off: no reply is analysed.",
    )
    rejections_per_source: float = Field(
        default=20.0,
        gt=0,
        description="Rejection entries a second and source address (IPv6: /64), with a burst of "
        "five seconds' worth; what is above is counted and the next entry carries the count.",
    )
    rejections_total: float = Field(default=200.0, gt=0, description="The same over all sources.")


class LedgerSettings(Table):
    """The append-only log under ``<data>/ledger``."""

    origin: str | None = Field(
        default=None,
        pattern=r"^[^\s+]{1,128}$",
        description="Name of the log in its checkpoints; made at first start and kept.",
    )
    public: bool = Field(
        default=False, description="Checkpoint and hash tiles readable without a key."
    )
    key_file: Path | None = Field(
        default=None,
        description="PEM file of the log's Ed25519 key, such as a mounted secret; "
        "by default one is made in the private folder of each shard.",
    )
    key_pem: SecretStr | None = Field(
        default=None, description="That key itself, as PEM text, instead of a file."
    )
    ring_bytes: int = Field(default=16 << 20, ge=1 << 20, le=1 << 30)

    @model_validator(mode="after")
    def _check_key(self) -> LedgerSettings:
        if self.key_file is not None and self.key_pem is not None:
            raise ValueError("give key_file or key_pem, not both")
        return self


class LogSettings(Table):
    """What is said on standard error."""

    format: Literal["json", "text"] = Field(
        default="json", description="json: one object a line; text: for people."
    )
    calls: bool = Field(default=True, description="One line for each governed call.")
    slow_loop: Annotated[float, Field(ge=0.01, le=60)] = Field(
        default=0.1,
        description="Seconds that the event loop may stand still before the log names the stage "
        "that keeps it.",
    )


class Settings(BaseSettings):
    """Everything the gateway can be told; see :func:`load_settings` for files."""

    model_config = SettingsConfigDict(
        env_prefix="AEGIS_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535, description="0 takes a free port.")
    uds: Path | None = Field(default=None, description="Listen on this Unix socket instead.")
    data: Path = Field(default=Path("aegis-data"), description="Ledger and private files.")
    workers: int = Field(
        default=1, ge=1, le=64, description="Processes that share the port, one shard each."
    )
    drain_grace: Annotated[float, Field(ge=0, le=60)] = Field(
        default=1.0,
        description="Seconds at shutdown in which kept connections still get an answer, with "
        "`connection: close`, before idle ones are closed.",
    )
    shutdown_deadline: Seconds = Field(
        default=30.0, description="Seconds that running calls get to finish at shutdown."
    )
    upstream: Upstream = Upstream()
    keys: tuple[ApiKey, ...] = ()
    limits: Limits = Limits()
    evidence: EvidenceSettings = EvidenceSettings()
    ledger: LedgerSettings = LedgerSettings()
    trusted_proxies: tuple[Proxy, ...] = Field(
        default=(),
        description="Networks of proxies whose word on the caller's address counts; "
        "'unix': whoever reaches the Unix socket.",
    )
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = Field(
        default="x-forwarded-for", description="The one header that those proxies write."
    )
    logs: LogSettings = LogSettings()
    alerts: AlertSettings = AlertSettings()
    otel: bool = Field(
        default=False,
        description="An OpenTelemetry span for each governed call (extra `otel`), exported as "
        "OTLP over HTTP; OTEL_* variables say where to.",
    )

    @field_validator("otel")
    @classmethod
    def _check_otel(cls, value: bool) -> bool:
        if value and not _otel_installed():
            raise ValueError("needs OpenTelemetry: pip install 'aegis-c[otel]'")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        for member in ("id", "sha256"):
            values = [getattr(key, member) for key in self.keys]
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"keys: the {member} {value!r} is given twice")
        need = self.limits.max_in_flight * 2 * ENTRY_MAX
        if need > self.ledger.ring_bytes:
            raise ValueError(
                f"limits.max_in_flight = {self.limits.max_in_flight} needs ledger.ring_bytes >= "
                f"{need} (two entries of {ENTRY_MAX} bytes a call), "
                f"but it is {self.ledger.ring_bytes}"
            )
        self._check_limit_names()
        return self

    def _check_limit_names(self) -> None:
        """Limits of a key or tenant that does not exist would never apply to anybody."""
        for table, member in (("keys", "id"), ("tenants", "tenant")):
            known = {getattr(key, member) for key in self.keys} or {"local"}
            for name in getattr(self.limits, table):
                if name not in known:
                    raise _Misfit(
                        ("limits", table, name),
                        f"no key has this {member}; known: {', '.join(sorted(known))}",
                    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments and environment; :func:`load_settings` adds the file below them."""
        return init_settings, env_settings

    def policy(self) -> str:
        """64 hex digits: SHA-256 of the active settings, secrets left out.

        Over the compact JSON text with sorted members of everything but where it runs
        and in how many processes (PROCESS), and the secrets (keys of upstreams and webhook, key
        digests).
        """
        shown = self.model_dump(mode="json", exclude=dict.fromkeys(PROCESS, True))
        for upstream in (shown["upstream"], *shown["upstream"]["targets"]):
            del upstream["api_key"]
        del shown["upstream"]["proxy_login"]
        shown["upstream"]["retry"]["statuses"].sort()
        del shown["alerts"]["webhook"]["secret"]
        del shown["ledger"]["key_pem"]
        for key in shown["keys"]:
            del key["sha256"]
            key["roles"] = sorted(key["roles"])
        return hashlib.sha256(msgspec.json.encode(shown, order="sorted")).hexdigest()

    def loopback_only(self) -> bool:
        """True when the address can only be reached from this machine."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _otel_installed() -> bool:
    try:
        return None not in map(find_spec, _OTEL)
    except ModuleNotFoundError:  # a package above them
        return False


def load_settings(file: Path | None = None, **overrides: Any) -> Settings:
    """Read ``file`` (default: ``AEGIS_CONFIG``), the environment, then ``overrides`` on top.

    An override that is None counts as not given; nested ones are mappings
    (``upstream={"url": ...}``). Raises SettingsError with one line per fault.
    """
    if file is None and os.environ.get("AEGIS_CONFIG"):
        file = Path(os.environ["AEGIS_CONFIG"])
    text = "" if file is None else _text_of(file)  # once: the file may change meanwhile
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from None

    class FileSettings(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, document)

    unknown = sorted(name for name in os.environ if _is_unknown(name))
    if unknown:
        known = [f"AEGIS_{name.upper()}" for name in Settings.model_fields]
        raise SettingsError(
            f"{unknown[0]}: unknown setting in the environment{_nearest(unknown[0], known)}; "
            f"known are {', '.join(known)} (nested: AEGIS_UPSTREAM__URL)"
        )
    try:
        loaded = FileSettings(**{k: v for k, v in overrides.items() if v is not None})
    except ValidationError as error:
        raise SettingsError(_explain(error, file, text)) from None
    except ValueError as error:  # JSON in a variable that does not parse
        field = re.search(r'field "(\w+)"', str(error))
        variable = "an AEGIS_ variable" if field is None else f"AEGIS_{field[1].upper()}"
        raise SettingsError(f"{variable}: must be JSON: {error.__cause__ or error}") from None
    values = {name: getattr(loaded, name) for name in Settings.model_fields}
    return Settings.model_construct(loaded.model_fields_set, **values)


def _text_of(file: Path) -> str:
    if not file.is_file():
        raise SettingsError(f"{file}: no such settings file")
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: not UTF-8: {error}") from None


def _is_unknown(name: str) -> bool:
    """True for a variable with our prefix that is neither a setting nor a tool's switch."""
    upper = name.upper()
    if not upper.startswith("AEGIS_") or upper in TOOL_VARIABLES:
        return False
    return upper.removeprefix("AEGIS_").split("__")[0].lower() not in Settings.model_fields


def _explain(error: ValidationError, file: Path | None, text: str) -> str:
    """One line per fault: where, key, reason; never a given value that may be a secret."""
    lines = None if file is None else Lines(text)
    faults = []
    for fault in error.errors(include_url=False):
        cause = fault.get("ctx", {}).get("error")
        path = cause.path if isinstance(cause, _Misfit) else fault["loc"]
        key = ".".join(str(part) for part in path) or "settings"
        reason = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            reason = "unknown key" + _nearest(str(path[-1]), keys_of(path[:-1]))
        faults.append(_where(path, lines, missing=fault["type"] == "missing") + f"{key}: {reason}")
    where = f" ({file} and AEGIS_* variables)" if file is not None else ""
    return f"unusable settings{where}: " + "; ".join(faults)


def given_by(file: Path | None) -> list[str]:
    """Where settings come from: the file, and the names of the variables that count."""
    if file is None and os.environ.get("AEGIS_CONFIG"):
        file = Path(os.environ["AEGIS_CONFIG"])
    variables = [
        name
        for name in sorted(os.environ)
        if name.upper().startswith("AEGIS_") and name.upper() not in TOOL_VARIABLES
    ]
    return [*([] if file is None else [str(file)]), *variables]


def keys_of(path: tuple[str | int, ...] = ()) -> list[str]:
    """The keys of the table at ``path`` (() is the whole file); none when it is no table."""
    table: Any = Settings
    for part in path:
        if isinstance(part, int):
            continue  # an element of an array of tables: what its array holds
        field = getattr(table, "model_fields", {}).get(part)
        table = None if field is None else field.annotation
        inner = [one for one in get_args(table) if hasattr(one, "model_fields")]
        table = inner[0] if inner else table
    return list(getattr(table, "model_fields", ()))


def _nearest(name: str, known: list[str]) -> str:
    """`` (did you mean ...?)`` when a known name is close to ``name``."""
    found = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def _where(path: tuple[str | int, ...], lines: Lines | None, *, missing: bool) -> str:
    """The variable or the line that gives ``path``, as a prefix; empty when neither does."""
    variable = variable_of(path)
    if variable is not None:
        return f"{variable}: "
    if lines is None:
        return ""
    line = lines.nearest(path) if missing else lines.exact(path)
    return "" if line is None else f"line {line}: "
