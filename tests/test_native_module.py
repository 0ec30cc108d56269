"""The extension module: stub and module agree, every type is a collected heap type, subinterpreters
work, nothing leaks, other threads go on."""

from __future__ import annotations

import ast
import gc
import inspect
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

import aegis_c
from aegis_c import _native
from native import (
    SECRET,
    check_no_leak,
    commitment_calls,
    counts_while,
    filled_ledger,
    handover_calls,
    ignore,
    ledger_calls,
    limiter_calls,
    wal_calls,
)

pytestmark = pytest.mark.native

STUB = Path(aegis_c.__file__).parent / "_native.pyi"
# Written by type slots and not by a method table, or not meant for callers.
SLOTS = {"__new__", "__len__", "__init__"}
INHERITED = {"file", "offset", "index", "seq", "expected", "found", "advice"}


def stub_definitions() -> tuple[dict[str, ast.ClassDef], dict[str, ast.FunctionDef]]:
    body = ast.parse(STUB.read_text()).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    return classes, functions


def native_types() -> dict[str, type]:
    return {
        name: value
        for name, value in vars(_native).items()
        if isinstance(value, type) and not issubclass(value, BaseException)
    }


def is_decorated(node: ast.FunctionDef, name: str) -> bool:
    return any(isinstance(d, ast.Name) and d.id == name for d in node.decorator_list)


def parameters(node: ast.FunctionDef) -> list[tuple[str, str, str | None]]:
    """(name, kind, default as source) of each parameter but self."""
    args = node.args
    defaults: list[ast.expr | None] = [None] * (
        len(args.posonlyargs) + len(args.args) - len(args.defaults)
    )
    defaults += args.defaults
    positional = [(a, "posonly") for a in args.posonlyargs] + [(a, "plain") for a in args.args]
    found = [
        (a.arg, kind, ast.unparse(d) if d is not None else None)
        for (a, kind), d in zip(positional, defaults, strict=True)
    ]
    if args.vararg is not None:
        found.append((args.vararg.arg, "star", None))
    for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found.append((a.arg, "keyword", ast.unparse(d) if d is not None else None))
    return [p for p in found if p[0] not in ("self", "cls")]


def signature_of(function: object) -> list[tuple[str, str, str | None]]:
    kinds = {
        inspect.Parameter.POSITIONAL_ONLY: "posonly",
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "plain",
        inspect.Parameter.VAR_POSITIONAL: "star",
        inspect.Parameter.KEYWORD_ONLY: "keyword",
    }
    return [
        (p.name, kinds[p.kind], None if p.default is p.empty else repr(p.default))
        for p in inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        if p.name != "self"
    ]


def test_stub_names_what_the_module_has() -> None:
    classes, functions = stub_definitions()
    public = {name for name in vars(_native) if not name.startswith("_")}
    assert public == {n for n in (*classes, *functions) if not n.startswith("_")}


@pytest.mark.parametrize("name", sorted(native_types()))
def test_stub_and_type_agree(name: str) -> None:
    classes, _ = stub_definitions()
    stub = {n.name: n for n in classes[name].body if isinstance(n, ast.FunctionDef)}
    overloaded = {n for n, node in stub.items() if is_decorated(node, "overload")}
    cls = native_types()[name]
    public = {n for n in vars(cls) if not n.startswith("_")}
    assert public == {n for n in stub if not n.startswith("_")}
    for method, node in stub.items():
        if is_decorated(node, "property"):
            assert inspect.isdatadescriptor(vars(cls)[method]), method
        elif method in SLOTS or method.startswith("__"):
            assert hasattr(cls, method), method
        else:
            real, written = signature_of(getattr(cls, method)), parameters(node)
            if method in overloaded:  # each overload makes other defaults explicit
                assert [p[:2] for p in real] == [p[:2] for p in written], method
            else:
                assert real == written, method
            assert inspect.getdoc(getattr(cls, method)), f"{method} has no docstring"
    assert inspect.getdoc(cls), f"{name} has no docstring"


def test_stub_and_functions_agree() -> None:
    _, functions = stub_definitions()
    for name, node in functions.items():
        assert signature_of(getattr(_native, name)) == parameters(node), name
        assert inspect.getdoc(getattr(_native, name)), f"{name} has no docstring"


def test_package_exports_the_module() -> None:
    public = {name for name in vars(_native) if not name.startswith("_")}
    assert public <= set(aegis_c.__all__), "add them to aegis_c/__init__.py"
    for name in public:
        assert getattr(aegis_c, name) is getattr(_native, name)


@pytest.mark.parametrize("name", sorted(native_types()))
def test_types_are_collected_heap_types(name: str) -> None:
    cls = native_types()[name]
    heap_type, have_gc, immutable = 1 << 9, 1 << 14, 1 << 8
    assert cls.__flags__ & heap_type
    assert cls.__flags__ & have_gc
    assert cls.__flags__ & immutable
    assert cls.__module__ == "aegis_c"
    assert gc.is_tracked(cls)


def test_errors_carry_detail(tmp_path: Path) -> None:
    first = aegis_c.Ledger(tmp_path / "log")
    with pytest.raises(aegis_c.LedgerError, match="another process or handle") as caught:
        aegis_c.Ledger(tmp_path / "log")
    assert caught.value.file == str(tmp_path / "log.private" / "LOCK")
    assert caught.value.advice is not None
    assert caught.value.offset is None
    first.close()


def test_free_threading_is_declared() -> None:
    """With a free-threaded interpreter the import must not switch the GIL on; with others the
    source says so."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return  # aegis_c is imported, and the GIL is still off
    source = (Path(__file__).parents[1] / "aegis_c" / "bind" / "module.c").read_text()
    assert "{Py_mod_gil, Py_MOD_GIL_NOT_USED}" in source


def test_subinterpreters() -> None:
    """Two subinterpreters use the types after one another, each with a module of its own."""
    script = textwrap.dedent(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import sys, tempfile, aegis_c
        code = '''
        import sys
        sys.path[:] = {path!r}
        import aegis_c
        ledger = aegis_c.Ledger({folder!r})
        ledger.submit(b"{{}}")
        ledger.wait(0, "published", 30)
        try:
            ledger.entry(5)
        except IndexError as error:
            assert "does not exist" in str(error)
        ledger.close()
        c = aegis_c.Commitment(b"s", b"i" * 16, "request")
        c.update(b"x")
        c.finish()
        '''
        with tempfile.TemporaryDirectory() as folder:
            for n in range(2):
                interpreter = interpreters.create()
                text = code.format(path=sys.path, folder=f"{folder}/log{n}")
                import textwrap
                failed = interpreters.run_string(interpreter, textwrap.dedent(text))
                assert failed is None, failed
                interpreters.destroy(interpreter)
        assert aegis_c.Commitment(b"s", b"i" * 16, "request").finish()[0] == 0
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_nothing_leaks_from_commitments() -> None:
    for name, call in commitment_calls().items():
        print(name)
        check_no_leak(call)


def test_nothing_leaks_from_a_hand_over() -> None:
    for name, call in handover_calls().items():
        print(name)
        check_no_leak(call)


def test_nothing_leaks_from_a_ledger(tmp_path: Path) -> None:
    with filled_ledger(tmp_path) as ledger:

        def settle() -> None:
            ledger.wait(len(ledger) - 1, "published", 30)

        for name, call in ledger_calls(ledger).items():
            print(name)
            # 512 entries fill two bundles: the third is as long as the second
            check_no_leak(call, 512 if name.startswith("submit") else 100, settle)


def test_nothing_leaks_from_a_log(tmp_path: Path) -> None:
    with aegis_c.WalWriter(tmp_path / "wal", segment_bytes=1 << 20, ring_bytes=1 << 18) as wal:
        wal.append(b"first")
        wal.sync()
        for name, call in wal_calls(wal, tmp_path / "wal").items():
            print(name)
            # each try at a locked log takes 0.1 s
            check_no_leak(call, 10 if name == "second writer" else 40, wal.sync)


def test_nothing_leaks_from_limiters(tmp_path: Path) -> None:
    for name, call in limiter_calls(tmp_path).items():
        print(name)
        check_no_leak(call, 100)


def test_nothing_leaks_from_opening_and_closing(tmp_path: Path) -> None:
    filled_ledger(tmp_path, 10).close()

    def open_and_close() -> None:
        path = tmp_path / "ledger" / "w0"
        with aegis_c.Ledger(path) as ledger:
            ignore(aegis_c.LedgerError, lambda: aegis_c.Ledger(path))()
            ignore(ValueError, lambda: aegis_c.Ledger(path, ring_bytes=5))()
            assert len(ledger) == 10

    check_no_leak(open_and_close, times=30)


def test_an_unclosed_ledger_warns_and_closes(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ledger = aegis_c.Ledger(tmp_path / "log")
        ledger.submit(b"{}")
        del ledger
        gc.collect()
    assert [str(w.message) for w in caught if w.category is ResourceWarning] == [
        f"unclosed ledger {tmp_path / 'log'}"
    ]
    with aegis_c.Ledger(tmp_path / "log") as ledger:
        assert ledger.entry(0) == b"{}"


def test_other_threads_keep_their_pace() -> None:
    body = b"x" * (64 << 20)
    commitment = aegis_c.Commitment(SECRET, b"i" * 16, "request")
    assert counts_while(lambda: commitment.update(body)) > 1000


def test_other_threads_keep_their_pace_during_a_wait(tmp_path: Path) -> None:
    with filled_ledger(tmp_path) as ledger:
        index = ledger.submit(b"{}")
        assert counts_while(lambda: ledger.wait(index, "published", 30)) > 100
