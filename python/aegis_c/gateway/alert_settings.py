"""The settings of alerts: where they are sent, and how they are signed."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator, model_validator

from aegis_c.gateway.tables import Seconds, Table
from aegis_c.gateway.upstream_settings import check_secret, check_url, read_secret


class WebhookSettings(Table):
    """Who is told of every alert by a POST; without ``url`` nobody is."""

    url: str | None = Field(default=None, description="http://, https:// or unix:/socket:/path.")
    secret: SecretStr | None = Field(
        default=None, description="Signs the messages: 16 characters or more."
    )
    secret_file: Path | None = Field(default=None, description="A file that holds it instead.")
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities to trust; default: the system's."
    )
    proxy: str = Field(default="env", description="As upstream.proxy.")
    timeout: Seconds = Field(default=10.0, description="Seconds for one attempt.")
    attempts: int = Field(default=6, ge=1, le=20, description="For one alert.")
    backoff: Seconds = Field(
        default=1.0, description="Seconds before the second attempt; doubles up to 60."
    )
    queue: int = Field(
        default=1000, ge=1, le=100_000, description="Alerts that wait; what is above is not sent."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        return None if value is None else check_url(value)

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        return check_secret(value)

    @model_validator(mode="after")
    def _check_together(self) -> WebhookSettings:
        if self.secret is not None and self.secret_file is not None:
            raise ValueError("give either secret or secret_file, not both")
        if self.url is not None and len(self.key()) < 16:
            raise ValueError("a webhook needs a secret of 16 characters or more")
        return self

    def key(self) -> bytes:
        """The secret, empty without one. Raises ValueError when its file cannot be read."""
        if self.secret_file is not None:
            return read_secret(self.secret_file, "secret_file").encode()
        return b"" if self.secret is None else self.secret.get_secret_value().encode()


class AlertSettings(Table):
    """What becomes of findings, beside their entries."""

    webhook: WebhookSettings = WebhookSettings()
