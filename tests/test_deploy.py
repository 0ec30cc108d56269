"""The examples of deployment: an image description and Kubernetes manifests, without an engine."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import components
from aegis_c.gateway.settings import Settings, Upstream

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
MANIFESTS = ROOT / "deploy" / "kubernetes.yaml"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(w, rest.strip()) for w, _, rest in (line.partition(" ") for line in lines if line)]


def variables() -> dict[str, str]:
    found: dict[str, str] = {}
    for word, rest in instructions():
        if word == "ENV":
            found |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    return found


def test_the_image_runs_without_root_and_as_the_command_is() -> None:
    words = instructions()
    last_stage = max(i for i, (word, _) in enumerate(words) if word == "FROM")
    final = dict(words[last_stage:])
    assert int(final["USER"]) > 0
    assert final["ENTRYPOINT"] == '["/opt/aegis/bin/aegis-c"]'
    assert "ADD" not in dict(words)
    assert final["VOLUME"] == variables()["AEGIS_DATA"]
    names = {f"AEGIS_{name.upper()}" for name in Settings.model_fields} | {"AEGIS_CONFIG"}
    assert {name for name in variables() if name.startswith("AEGIS_")} <= names


def test_the_image_builds_with_what_the_set_up_asks_for() -> None:
    """The packages of the build stage are those that ./dev installs to compile."""
    build = " ".join(rest for word, rest in instructions() if word == "RUN")
    for package in ("gcc", "libc6-dev", "libssl-dev", "pkg-config"):
        assert package in build.split()
        assert package in (ROOT / "dev").read_text()


def manifests() -> list[dict[str, Any]]:
    """The documents, and the published schemas to hold them against; or the test is left out."""
    try:
        importlib.import_module("kubernetes_validate")
    except ImportError as error:
        pip = [sys.executable, "-m", "pip", "install", "-q", "kubernetes-validate"]
        if not components.in_ci() or subprocess.run(pip, check=False).returncode != 0:
            components.leave_out(
                "Kubernetes manifests against their published schemas",
                ".venv/bin/pip install kubernetes-validate",
                str(error),
            )
    yaml = importlib.import_module("yaml")
    return [document for document in yaml.safe_load_all(MANIFESTS.read_text()) if document]


def test_the_manifests_fit_their_published_schemas() -> None:
    documents = manifests()
    validator = importlib.import_module("kubernetes_validate")
    assert [d["kind"] for d in documents] == ["ConfigMap", "Service", "StatefulSet"]
    for document in documents:
        validator.validate(document, "1.30", strict=True)
    documents[2]["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(documents[2], "1.30", strict=True)


def test_the_manifests_hold_together() -> None:
    config, _, stateful = manifests()
    pod = stateful["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert str(pod["securityContext"]["runAsUser"]) == dict(instructions())["USER"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    probes = {k: v["httpGet"]["path"] for k, v in container.items() if k.endswith("Probe")}
    assert probes == {
        "startupProbe": "/ready",
        "readinessProbe": "/ready",
        "livenessProbe": "/health",
    }
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]} | claimed
    assert mounted["data"] == variables()["AEGIS_DATA"]
    assert variables()["AEGIS_CONFIG"] == f"{mounted['settings']}/aegis.toml"

    values = tomllib.loads(config["data"]["aegis.toml"])
    key_file = values["upstream"].pop("api_key_file")
    assert os.path.dirname(key_file) == mounted["secrets"]
    settings = Settings(**{**values, "upstream": Upstream(**values["upstream"])})
    grace = pod["terminationGracePeriodSeconds"]
    assert grace > settings.shutdown_deadline + settings.drain_grace + 5
