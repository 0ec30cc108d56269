"""The house: layout, `./dev`, sdist and wheel, other Python versions, hygiene of the files."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

import aegis_c
import components
from c import build

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MADE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "__pycache__", "*.so", "*.egg-info", ".*_cache",
    ".hypothesis", ".benchmarks",
)  # fmt: skip


def files() -> Iterator[Path]:
    """The files that belong to the project, relative to its root."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
        names = [Path(name) for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked sdist
        names = []
    if not names:
        for folder, folders, found in os.walk(ROOT):
            hidden = MADE(folder, folders + found)
            folders[:] = [name for name in folders if name not in hidden]
            names += [Path(folder, name).relative_to(ROOT) for name in found if name not in hidden]
    yield from (name for name in names if (ROOT / name).is_file())


def imports(path: Path) -> set[str]:
    """The modules that a Python file imports, wherever in it, and the names it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    """The top-level modules that a Python file imports."""
    return {name.partition(".")[0] for name in imports(path)}


# ---- layout -----------------------------------------------------------------------------------


def test_import_from_the_root_finds_the_package_and_not_the_c_sources() -> None:
    code = "import aegis_c; print(aegis_c.__file__, aegis_c._native.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    file, name = done.stdout.rsplit(maxsplit=1)
    assert Path(file).name == "__init__.py"
    assert name == "aegis_c._native"


def test_only_bind_includes_python_h() -> None:
    sources = list((ROOT / "aegis_c").rglob("*.[ch]"))
    assert len(sources) > 10
    users = {path.parent for path in sources if "Python.h" in path.read_text()}
    assert users == {ROOT / "aegis_c" / "bind"}


def test_the_package_imports_only_what_it_declares() -> None:
    """Every third-party import of the package is a dependency; those of the demo may be its own."""
    name_of = re.compile(r"[A-Za-z0-9_.-]+")

    def declared(requirements: list[str]) -> set[str]:
        names = (name_of.match(requirement) for requirement in requirements)
        return {match[0].lower().replace("-", "_") for match in names if match}

    core = declared(PYPROJECT["project"]["dependencies"])
    core |= {"pydantic", "starlette"} if "fastapi" in core else set()  # what fastapi is made of
    demo = core | declared(PYPROJECT["project"]["optional-dependencies"]["demo"])
    undeclared = []
    package = ROOT / "python" / "aegis_c"
    for path in package.rglob("*.py"):
        allowed = demo if path.is_relative_to(package / "demo") else core
        if path == package / "gateway" / "spans.py":  # works with the extra `otel` alone
            allowed = allowed | {"opentelemetry"}
        allowed |= {"aegis_c", *sys.stdlib_module_names}
        for module in sorted(roots(path) - allowed):
            undeclared.append(f"{path.relative_to(ROOT)}: {module}")  # noqa: PERF401
    assert undeclared == []


def test_tests_of_the_extension_alone_say_so() -> None:
    """The marker is what makes them run under AddressSanitizer and under other Pythons."""
    in_python = {path.stem for path in (ROOT / "python" / "aegis_c").iterdir()}
    in_python -= {"__init__", "_native", "compat"}
    types = {name for name in vars(aegis_c._native) if not name.startswith("_")}
    unmarked = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        text = path.read_text()
        used = {name.split(".")[1] for name in imports(path) if name.startswith("aegis_c.")}
        used |= set(re.findall(r"\baegis_c\.(\w+)", text))
        if used & types and not used & in_python and "pytest.mark.native" not in text:
            unmarked.append(path.name)
    assert unmarked == [], "add `pytestmark = pytest.mark.native` below the imports"


def test_the_files_are_clean() -> None:
    """No file over 1 MiB; no absolute path of somebody's machine; text ends with a newline."""
    own_paths = re.compile(rb"(?<![\w.])/(work|root|home/\w+|Users/\w+|tmp/\w+-\w+)/")
    problems = []
    names = list(files())
    assert Path("dev") in names
    for name in names:
        data = (ROOT / name).read_bytes()
        if len(data) > 1 << 20:
            problems.append(f"{name}: {len(data)} octets")
        if b"\0" in data:
            continue
        if name != Path("tests/test_house.py") and (found := own_paths.search(data)):
            problems.append(f"{name}: {found[0].decode()}")
        if data and not data.endswith(b"\n") and name.parts[:2] != ("tests", "vectors"):
            problems.append(f"{name}: no newline at the end")
    assert problems == []


def test_setup_py_stays_small() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 120


# ---- ./dev on machines that lack something -----------------------------------------------------

TOOLS = ["sh", "dirname", "cat", "cksum", "find", "sort", "sed", "tr", "awk", "grep", "rm", "mv"]
OLD = "sys.version_info = (3, 10, 13, 'final', 0)"
NO_HEADERS = "import sysconfig; sysconfig.get_path = lambda *a: '/nonexistent'"
NO_ENSUREPIP = (
    "import importlib.util as u; find = u.find_spec; "
    "u.find_spec = lambda name: None if name == 'ensurepip' else find(name)"
)


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


class Machine:
    """A checkout and a PATH that holds nothing but what a test puts there."""

    def __init__(self, home: Path) -> None:
        self.checkout = home / "check out"
        self.checkout.mkdir()
        for name in ("dev", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.checkout)
        (self.checkout / "aegis_c" / "bind").mkdir(parents=True)
        (self.checkout / "python" / "aegis_c").mkdir(parents=True)
        self.bin = home / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)
        script(self.bin / "id", "#!/bin/sh\necho 1000\n")
        compiler = shutil.which(build.compiler()[0])
        assert compiler is not None
        # The loader and assembler that a compiler looks for on PATH come with its folder.
        self.cc = script(
            self.bin / "fake-cc", f'#!/bin/sh\nPATH={os.environ["PATH"]} exec "{compiler}" "$@"\n'
        )
        self.compiler = compiler
        self.env = {"PATH": str(self.bin), "CC": str(self.cc), "AEGIS_NO_APT": "1"}

    def python(self, name: str, patch: str = "") -> None:
        """An interpreter on PATH: this one, with a patch that makes it lack something."""
        code = f"import sys; {patch or 'pass'}; exec(sys.argv[1])"
        script(self.bin / name, f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$2"\n')

    def no_openssl(self) -> None:
        script(
            self.cc,
            "#!/bin/sh\n"
            'for word; do case $word in *.c) grep -q openssl "$word" && exit 1 ;; esac; done\n'
            f'PATH={os.environ["PATH"]} exec "{self.compiler}" "$@"\n',
        )

    def dev(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.checkout / "dev"), *words],
            cwd="/",
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def refused(self, *words: str) -> str:
        """Runs ./dev, which must exit 2 and create nothing; what it said."""
        before = sorted(self.checkout.rglob("*"))
        done = self.dev(*words)
        assert done.returncode == 2, done.stderr
        assert sorted(self.checkout.rglob("*")) == before
        assert "Traceback" not in done.stderr
        assert "not found" not in done.stderr
        return done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def apt_line(said: str) -> list[str]:
    """The packages of the one line that says what to install."""
    (line,) = (line for line in said.splitlines() if "sudo apt-get install" in line)
    return line.partition("sudo apt-get install ")[2].split()


def test_dev_refuses_old_pythons_and_names_them(machine: Machine) -> None:
    machine.python("python3", OLD)
    machine.python("python3.11", OLD)
    said = machine.refused("test")
    assert "CPython 3.11 or newer" in said
    assert f"{machine.bin}/python3 (3.10.13)" in said
    assert f"{machine.bin}/python3.11 (3.10.13)" in said
    assert {"python3-venv", "python3-dev", "gcc", "libssl-dev"} < set(apt_line(said))


def test_dev_refuses_when_there_is_no_python_at_all(machine: Machine) -> None:
    said = machine.refused("demo")
    assert "CPython 3.11 or newer (found: none)" in said
    assert apt_line(said)[0] == "python3"


@pytest.mark.parametrize(("patch", "says"), [(OLD, "3.10.13"), (None, "no such program")])
def test_dev_obeys_aegis_python_alone(machine: Machine, patch: str | None, says: str) -> None:
    machine.python("python3")
    machine.env["AEGIS_PYTHON"] = str(machine.bin / "mine")
    if patch:
        machine.python("mine", patch)
    said = machine.refused("build")
    assert str(machine.bin / "mine") in said
    assert says in said


@pytest.mark.parametrize(
    ("patch", "says", "package"),
    [
        (NO_HEADERS, "Python.h for", r"python3(\.\d+)?-dev"),
        (NO_ENSUREPIP, "ensurepip for", r"python3(\.\d+)?-venv"),
    ],
)
def test_dev_names_what_the_interpreter_lacks(
    machine: Machine, patch: str, says: str, package: str
) -> None:
    machine.python("python3", patch)
    said = machine.refused("test")
    assert says in said
    assert any(re.fullmatch(package, name) for name in apt_line(said))
    assert not {"gcc", "libssl-dev"} & set(apt_line(said))


def test_dev_names_everything_that_is_missing_in_one_line(machine: Machine) -> None:
    machine.python("python3", f"{NO_HEADERS}; {NO_ENSUREPIP}")
    machine.env["CC"] = "/nonexistent/cc"
    said = machine.refused("serve")
    for what in ("Python.h", "ensurepip", "C compiler", "OpenSSL"):
        assert f"  - {what}" in said or f"  - a {what}" in said
    assert {"gcc", "libc6-dev", "libssl-dev", "pkg-config"} < set(apt_line(said))


def test_dev_needs_openssl_that_compiles_and_links(machine: Machine) -> None:
    machine.python("python3")
    machine.no_openssl()
    said = machine.refused("test")
    assert "OpenSSL 3" in said
    assert apt_line(said) == ["libssl-dev", "pkg-config"]


def test_dev_prefers_the_interpreter_that_is_complete(machine: Machine) -> None:
    machine.python("python3", NO_HEADERS)
    machine.python("python3.12", OLD)
    machine.python("python3.11")
    machine.no_openssl()
    assert apt_line(machine.refused("test")) == ["libssl-dev", "pkg-config"]


@pytest.mark.skipif(not Path("/etc/debian_version").exists(), reason="apt-get is for Debian")
@pytest.mark.parametrize("forbidden", [False, True])
def test_dev_runs_apt_only_as_root_and_when_allowed(machine: Machine, forbidden: bool) -> None:
    machine.python("python3")
    machine.no_openssl()
    log = machine.bin.parent / "apt.log"
    script(machine.bin / "apt-get", f'#!/bin/sh\necho "$DEBIAN_FRONTEND $*" >>"{log}"\n')
    assert apt_line(machine.refused("test")) == ["libssl-dev", "pkg-config"]
    script(machine.bin / "id", "#!/bin/sh\necho 0\n")
    machine.env["AEGIS_NO_APT"] = "1" if forbidden else "0"
    said = machine.refused("test")
    if forbidden:
        assert not log.exists()
    else:
        assert "apt-get install --no-install-recommends libssl-dev pkg-config" in said
        update, install = log.read_text().splitlines()
        assert re.fullmatch("noninteractive .* update", update)
        assert re.fullmatch(
            "noninteractive .* --no-install-recommends libssl-dev pkg-config", install
        )


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        ("dnf", "sudo dnf install openssl-devel pkgconf-pkg-config"),
        ("apk", "sudo apk add openssl-dev pkgconf"),
        ("pacman", "sudo pacman -S openssl pkgconf"),
        ("brew", "brew install openssl@3 pkgconf"),
    ],
)
def test_dev_speaks_the_language_of_other_systems(
    machine: Machine, manager: str, line: str
) -> None:
    machine.python("python3")
    machine.no_openssl()
    script(machine.bin / manager, "#!/bin/sh\nexit 1\n")
    assert line in machine.refused("test")


@pytest.mark.parametrize("words", [[], ["nonsense"]])
def test_dev_prints_its_usage(machine: Machine, words: list[str]) -> None:
    assert "usage: ./dev VERB" in machine.refused(*words)
    done = machine.dev("help")
    assert done.returncode == 0
    assert "usage: ./dev VERB" in done.stdout


def need_index(what: str, stderr: str) -> None:
    """Leaves a test out when pip said that no package index answers."""
    if "No matching distribution found" in stderr:
        components.leave_out(what, "needs a package index that pip can reach", stderr)


# ---- ./dev where all is there ------------------------------------------------------------------

MODULE = """
#include <Python.h>
PyMODINIT_FUNC PyInit__native(void);
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, NULL,
                                        NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyModule_AddIntConstant(module, "ANSWER", 41);
    return module;
}
"""
CLI = """
import os, sys
from aegis_c import _native
def main():
    print(_native.ANSWER, os.getcwd(), *sys.argv[1:])
"""


def test_dev_sets_up_once_and_redoes_what_changed(tmp_path: Path) -> None:
    """A tiny project under the real dev, setup.py and pyproject.toml, without dependencies."""
    checkout = tmp_path / "check out"
    package = checkout / "python" / "aegis_c"
    package.mkdir(parents=True)
    for name in ("dev", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "README.md").touch()
    pyproject = (ROOT / "pyproject.toml").read_text()
    pyproject = re.sub(r"(?ms)^dependencies = \[.*?^\]", "dependencies = []", pyproject)
    pyproject = re.sub(r"(?m)^demo = .*", "demo = []", pyproject)
    (checkout / "pyproject.toml").write_text(pyproject)
    module = checkout / "aegis_c" / "bind" / "module.c"
    module.parent.mkdir(parents=True)
    module.write_text(MODULE)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(CLI)
    env = os.environ | {"AEGIS_PYTHON": sys.executable, "AEGIS_NO_APT": "1"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def dev(*words: str) -> tuple[str, str]:
        done = subprocess.run(
            [str(checkout / "dev"), *words],
            cwd=elsewhere,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip(), done.stderr

    # Two at the same time: one sets up, the other waits for it.
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command, cwd=elsewhere, env=env, stdout=pipe, stderr=pipe, text=True)
        for command in [[str(checkout / "dev"), "demo", word] for word in ("one", "two")]
    ]
    told = [process.communicate(timeout=180) for process in both]
    need_index("./dev from scratch", "".join(err for _, err in told))
    for (out, err), word in zip(told, ("one", "two"), strict=True):
        assert out == f"41 {elsewhere} demo {word}\n", err
    assert sum("making .venv" in err for _, err in told) == 1

    # Nothing is to be done and nothing is said; the arguments arrive whole.
    assert dev("serve", "x y") == (f"41 {elsewhere} serve x y", "")
    activate = (checkout / ".venv" / "bin" / "activate").read_text()
    assert ".venv.new" not in activate
    assert str(checkout / ".venv") in activate

    module.write_text(MODULE.replace("41", "42"))
    answer, said = dev("serve")
    assert answer.startswith("42 ")
    assert said == "aegis: compiling the extension\n"

    moved = tmp_path / "moved"
    checkout.rename(moved)
    checkout = moved
    answer, said = dev("serve")
    assert answer.startswith("42 ")
    assert "making .venv" in said

    dev("clean")
    left = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    assert left == {
        "LICENSE", "README.md", "aegis_c/bind/module.c", "dev", "pyproject.toml", "setup.py",
        "python/aegis_c/__init__.py", "python/aegis_c/cli.py",
    }  # fmt: skip


# ---- what the tests themselves rest on ---------------------------------------------------------


def run_tests(
    folder: Path, text: str, *options: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs one small test file under the conftest of this project."""
    for name in ("conftest.py", "components.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    env = os.environ | {"AEGIS_NO_APT": "1"} | env
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("processes", ["0", "2"])
def test_an_absent_component_is_named_at_the_end_and_fails_in_ci(
    tmp_path: Path, processes: str
) -> None:
    text = """
from components import require
def test_present(): require("a shell", lambda: None, "dash")
def test_absent(): require("a unicorn", lambda: "no horn here", "unicorn-dev")
"""
    done = run_tests(tmp_path, text, "-n", processes, CI="")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last == "NOT RUN: a unicorn (sudo apt-get install unicorn-dev)"
    done = run_tests(tmp_path, text, "-n", processes, CI="true")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "a unicorn (sudo apt-get install unicorn-dev)\nno horn here" in done.stdout


def test_a_failure_prints_the_seed_that_repeats_it(tmp_path: Path) -> None:
    text = "def test_it(rng): assert rng.random() == 2, 'drew ' + str(rng.random())"
    first = run_tests(tmp_path, text).stdout
    (seed,) = set(re.findall(r"AEGIS_TEST_SEED=(\d+)", first))
    (drawn,) = set(re.findall(r"drew ([0-9.]+)", first))
    assert f"drew {drawn}" in run_tests(tmp_path, text, AEGIS_TEST_SEED=seed).stdout
    assert f"drew {drawn}" not in run_tests(tmp_path, text, AEGIS_TEST_SEED=seed + "1").stdout


# ---- sdist and wheel ---------------------------------------------------------------------------


def test_the_versions_agree() -> None:
    assert PYPROJECT["project"]["version"] == aegis_c.__version__


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of a copy of the project, and the wheel built from that sdist."""
    home = tmp_path_factory.mktemp("distributions")
    shutil.copytree(ROOT, home / "copy", ignore=MADE)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(home), "copy"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = home.glob("*.tar.gz")
    (wheel,) = home.glob("*.whl")
    return sdist, wheel


def test_the_sdist_is_a_whole_checkout(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        packed = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert set(files()) - packed == set()


def test_the_wheel_holds_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert {"aegis_c/py.typed", "aegis_c/_native.pyi", "aegis_c/__init__.py"} < names
    (native,) = (name for name in names if name.endswith(".so"))
    assert native.startswith("aegis_c/_native.")
    for path in files():
        if path.parts[:2] == ("python", "aegis_c"):
            assert str(path.relative_to("python")) in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"aegis_c"}
    assert "Requires-Python: >=3.11\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    assert f"Version: {aegis_c.__version__}\n" in text


@pytest.fixture(scope="session")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an empty environment into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", distributions[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    need_index("the wheel in an empty environment", done.stderr)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_the_wheel_is_imported_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = "import aegis_c; print(aegis_c.__file__, aegis_c._native.__file__)"
    done = subprocess.run(
        [installed / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for file in done.stdout.split():
        assert Path(file).is_relative_to(installed.parent)


def test_the_installed_gateway_governs_a_call(installed: Path, tmp_path: Path) -> None:
    """From another folder, with nothing but the wheel: serve, call, receipt, verify, fsck."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")}
    env.pop("PYTHONPATH", None)
    aegis_command = str(installed / "aegis-c")
    data = tmp_path / "data"

    def aegis(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [aegis_command, *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert aegis("--version").stdout == f"aegis-c {aegis_c.__version__}\n"
    serve = [aegis_command, "serve", "--port", "0", "--data", str(data)]
    with (
        open(tmp_path / "stderr", "w+") as stderr,
        subprocess.Popen(
            serve, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as server,
    ):
        deadline = threading.Timer(60, server.kill)
        deadline.start()
        try:
            assert server.stdout is not None
            said = ""
            while not (listening := re.search(r"listening on (http://\S+);", said)):
                line = server.stdout.readline()
                assert line, said + (tmp_path / "stderr").read_text()
                said += line
            assert "built-in" in said  # no upstream is configured, and it says so

            def fetch(path: str, body: bytes | None = None) -> tuple[bytes, Message]:
                headers = {"authorization": "Bearer me", "content-type": "application/json"}
                request = urllib.request.Request(listening[1] + path, body, headers)
                with urllib.request.urlopen(request, timeout=30) as reply:
                    return reply.read(), reply.headers

            model = json.loads(fetch("/v1/models")[0])["data"][0]["id"]
            question = {
                "model": model,
                "messages": [{"role": "user", "content": "What does a receipt prove?"}],
                "max_tokens": 16,
            }
            asked = json.dumps(question).encode()
            answered, headers = fetch("/v1/chat/completions", asked)
            assert json.loads(answered)["choices"][0]["message"]["content"]
            receipt, _ = fetch(f"/v1/receipts/{headers['x-request-id']}?wait=1")
            server.terminate()
            assert server.wait(30) == 0, (tmp_path / "stderr").read_text()
        finally:
            deadline.cancel()
            server.kill()

    files = {"receipt": receipt, "asked": asked, "answered": answered, "forged": answered + b" "}
    for name, octets in files.items():
        (tmp_path / name).write_bytes(octets)
    verify = ["verify", "receipt", "--vkey", data / "ledger" / "w0" / "log.vkey"]
    done = aegis(*verify, "--request", "asked", "--response", "answered")
    assert done.returncode == 0, done.stderr
    assert aegis(*verify, "--request", "asked", "--response", "forged").returncode == 1
    done = aegis("ledger", "fsck", data)
    assert done.returncode == 0, done.stdout


# ---- other Python versions ---------------------------------------------------------------------


def other_pythons() -> dict[str, str]:
    """Interpreters of the newer versions on this machine, one a version: "3.12" -> path."""
    found: dict[str, str] = {}
    for minor in (12, 13, 14):
        if sys.version_info[1] == minor:
            continue
        name = f"python3.{minor}"
        managed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}"))
        for path in [*(f"{folder}/{name}" for folder in os.get_exec_path()), *map(str, managed)]:
            code = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
            try:
                done = subprocess.run([path, "-c", code], capture_output=True, text=True)
            except OSError:
                continue
            if done.stdout.split() == ["cpython", "3", str(minor)]:
                found[f"3.{minor}"] = path
                break
    return found


# Looks for leaks, kills and rates repeat themselves at length, and do so under one Python.
NOT_ELSEWHERE = "not leak and not kill_9 and not 99_percent"
PURE = "setuptools _distutils_hack pytest _pytest py pluggy iniconfig packaging pygments"


@pytest.mark.parametrize("version", sorted(other_pythons()) or ["none installed"])
def test_native_tests_pass_under_other_pythons(version: str, tmp_path: Path) -> None:
    """The extension compiles there without a warning, and the tests of it alone pass."""
    python = other_pythons().get(version)
    if python is None:
        pytest.skip("no other Python between 3.12 and 3.14 is installed here")
    # The tools are pure Python: those of this environment serve the other version as well.
    for name in PURE.split():
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        file = Path(spec.origin)
        entry = file.parent if file.name == "__init__.py" else file
        (tmp_path / entry.name).symlink_to(entry)
    built = ROOT / "build" / f"python{version}"
    env = os.environ | {"PYTHONPATH": str(tmp_path), "AEGIS_WERROR": "1"}
    command = [python, "setup.py", "-q", "build", "-b", str(built), "--build-lib", f"{built}/lib"]
    shutil.rmtree(built / "lib", ignore_errors=True)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    local = {path.stem for path in (ROOT / "tests").iterdir()}
    usable = {*sys.stdlib_module_names, *PURE.split(), *local, "aegis_c"}
    chosen = [
        path
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if "pytest.mark.native" in path.read_text() and path != Path(__file__)
        if roots(path) <= usable
    ]
    assert chosen
    env = os.environ | {"PYTHONPATH": f"{built / 'lib'}:{tmp_path}"}
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-m", "native", "-k", NOT_ELSEWHERE, *chosen],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
