"""Run the steps of deploy/Dockerfile without a container engine, and the result as it would run.

    sudo .venv/bin/python tests/image.py [--mirror URL]

A bare Debian (debootstrap) takes the place of the base image. Each RUN of both stages is executed
in it; then the gateway runs as the image's user, on a read-only root, with nothing but /data and
/dev/shm to write to, until /ready answers; SIGTERM must end it with 0.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_deploy import ROOT, instructions, variables

PORT = 18_080
INCLUDE = "python3,python3-venv,python3-dev,ca-certificates"
_MOUNTS = """
set -e
mount --bind "$1" "$1"
mount -t tmpfs -o mode=0755 tmpfs "$1/dev"
mkdir "$1/dev/shm" && mount -t tmpfs -o size=128m,mode=1777 tmpfs "$1/dev/shm"
for name in null urandom random; do
    touch "$1/dev/$name" && mount --bind "/dev/$name" "$1/dev/$name"
done
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=0750,uid="$2" tmpfs "$1/data"
mount -o remount,ro,bind "$1"
shift 2
exec chroot --userspec="$USER_ID" "$ROOT_DIR" "$@"
"""


def run_steps(root: Path) -> None:
    """The RUN instructions of all stages, in order, in one root."""
    for word, step in instructions():
        if word == "RUN":
            print(f"RUN {step[:100]}", flush=True)
            subprocess.run(["chroot", root, "/bin/sh", "-ec", step], check=True, env=_environment())


def _environment() -> dict[str, str]:
    """What the steps see: a plain PATH, and how this machine reaches package indexes."""
    kept = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.endswith("_proxy")}
    kept.pop("PIP_FIND_LINKS", None)
    return kept | {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def prepare(root: Path, mirror: str) -> None:
    """The base image's part, and COPY."""
    command = ["debootstrap", "--variant=minbase", f"--include={INCLUDE}", "bookworm", root, mirror]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", "HEAD"], check=True, capture_output=True
    ).stdout
    (root / "src").mkdir()
    subprocess.run(["tar", "-x", "-C", root / "src"], input=archive, check=True)
    for name in (
        "etc/resolv.conf",
        "etc/hosts",
        "etc/ssl/certs/ca-certificates.crt",
        "etc/pip.conf",
    ):
        if Path("/", name).exists():
            shutil.copy(Path("/", name).resolve(), root / name)


def serve(root: Path) -> None:
    """Start it as the image does; ready, then ended in order. Raises what does not hold."""
    final = dict(instructions())
    user = final["USER"]
    environment = variables() | {"AEGIS_HOST": "127.0.0.1", "AEGIS_PORT": str(PORT)}
    del environment["AEGIS_CONFIG"]
    environment |= {"USER_ID": f"{user}:{user}", "ROOT_DIR": str(root)}
    command = [*_list(final["ENTRYPOINT"]), *_list(final["CMD"])]
    process = subprocess.Popen(
        ["unshare", "--mount", "/bin/sh", "-c", _MOUNTS, "sh", str(root), user, *command],
        env=environment | {"PATH": os.environ["PATH"]},
    )
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready", timeout=2) as reply:
                    print("ready:", reply.read().decode())
                    break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"it ended with {process.returncode}") from None
                time.sleep(0.1)
        else:
            raise SystemExit("it is not ready after 30 s")
        process.send_signal(signal.SIGTERM)
        if process.wait(40) != 0:
            raise SystemExit(f"it ended with {process.returncode}")
    finally:
        process.kill()


def _list(text: str) -> list[str]:
    return shlex.split(text.strip("[]").replace(",", " "))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        print("NOT RUN: the image's build steps (as root; sudo apt-get install debootstrap)")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="aegis-image-"))
    folder.chmod(0o755)  # it becomes the root of another user's process
    try:
        prepare(folder, options.mirror)
        run_steps(folder)
        size = sum(p.lstat().st_size for p in (folder / "opt/aegis").rglob("*"))
        print(f"/opt/aegis has {size / 2**20:.0f} MiB")
        serve(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("the image's steps work, and so does what they make")
    return 0


if __name__ == "__main__":
    sys.exit(main())
