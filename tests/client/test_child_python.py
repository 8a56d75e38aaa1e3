"""The program's own Python may be older than Koinon's, and have nothing installed: koinon.child asks for 3.9 alone."""

import ast
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from childworker import PlayedWorker
from koinon import child
from koinon.child import errors, own
from koinon_core import errors as core

PACKAGE = Path(child.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))
OLDEST = (3, 9)
YOUNG_OPTIONS = {("zip", "strict"), ("dataclass", "slots"), ("dataclass", "kw_only")}
YOUNG_NAMES = {
    "Self", "override", "TypeAlias", "ParamSpec", "Never", "KW_ONLY", "assert_never", "Buffer", "StrEnum", "pairwise",
    "UTC", "tomllib", "NoneType", "UnionType", "TaskGroup", "chdir",
}  # fmt: skip
HEAVY = {"torch": {"module.py", "hook.py", "length.py"}, "numpy": {"arrays.py"}}


def newer(tree):
    """What in this code is newer than the oldest Python, though that one's grammar may let it pass."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Match | ast.TryStar):
            yield node, type(node).__name__
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield from ((node, f"{name}({k.arg}=)") for k in node.keywords if (name, k.arg) in YOUNG_OPTIONS)
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {a.name for a in node.names} | {getattr(node, "module", None)}
            yield from ((node, name) for name in names & YOUNG_NAMES)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and looks_like_types(node):
            yield node, "X | Y"


def looks_like_types(node):
    """Whether this union is of types, and outside of an annotation (those are never evaluated)."""
    sides = [node.left, node.right]
    return any(
        (isinstance(s, ast.Constant) and s.value is None)
        or (
            isinstance(s, ast.Name)
            and (s.id[0].isupper() or s.id in ("int", "str", "float", "bytes", "bool", "type"))
        )
        for s in sides
    )


def without_annotations(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Name("Any", ast.Load())
    return tree


def parsed(path):
    return ast.parse(path.read_text(), feature_version=OLDEST)


def imports(body):
    """What is imported whenever the file is: not in a function, a `try` or an `if`."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_nothing_in_a_file_is_newer_than_the_oldest_python(path):
    tree = parsed(path)
    assert "annotations" in {
        a.name
        for n in tree.body
        if isinstance(n, ast.ImportFrom) and n.module == "__future__"
        for a in n.names
    }
    found = [f"line {node.lineno}: {what}" for node, what in newer(without_annotations(tree))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "match x:\n    case 1: pass",
        "zip(a, b, strict=True)",
        "@dataclass(slots=True)\nclass A: pass",
        "@dataclasses.dataclass(kw_only=True)\nclass A: pass",
        "from typing import Self",
        "import tomllib",
        "isinstance(x, int | None)",
        "try: pass\nexcept* OSError: pass",
    ],
)
def test_what_is_newer_would_be_found(code):
    try:
        found = list(newer(ast.parse(code, feature_version=OLDEST)))
    except SyntaxError as error:
        found = [error]
    assert found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_file_imports_the_standard_library_and_its_neighbours_and_torch_and_numpy_where_they_are_due(path):
    for name in imports(parsed(path).body):
        top = name.partition(".")[0]
        due = path.name in HEAVY.get(top, ())
        assert name.startswith(".") or top in sys.stdlib_module_names or due, f"{path.name} imports {name}"


def test_the_parent_of_the_package_is_never_named():
    for path in FILES:
        for node in ast.walk(parsed(path)):
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1)


def test_the_package_is_flat_as_the_daemon_copies_it():
    assert [p for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"] == []


def test_importing_it_loads_neither_torch_nor_numpy_nor_the_network():
    code = "import koinon.child, sys; print({'torch', 'numpy', 'grpc', 'google.protobuf'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"


def test_the_errors_are_koinons_own_where_it_is_installed_and_the_same_map_elsewhere():
    for name in own.__all__:
        mine, theirs = getattr(own, name), getattr(core, name)
        assert getattr(errors, name) is theirs
        assert (mine.code, mine.exit) == (theirs.code, theirs.exit)
        assert [c.__name__ for c in mine.__mro__] == [c.__name__ for c in theirs.__mro__]
    assert set(own.__all__) == set(core.__all__) - {"from_code"}


def test_an_error_of_a_class_that_nobody_knows_is_an_error_all_the_same():
    assert type(errors.named("BadUpdate", "why")) is core.BadUpdate
    assert type(errors.named("Novel", "why")) is core.KoinonError
    assert str(errors.named("Novel", "why")) == "why"


# -- other Pythons --------------------------------------------------------------------------------------------


def pythons():
    """Older Pythons of this machine, in which Koinon is not installed."""
    for version in ("3.9", "3.10"):
        roots = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
        found = [str(p) for p in roots] or [p for p in [shutil.which(f"python{version}")] if p]
        if found:
            yield found[0]


def has(python, module):
    return not subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode


PROGRAM = """
    import sys
    import koinon_child as koinon

    try:
        import numpy
    except ImportError:
        numpy = None
    try:
        import koinon_core
    except ImportError:
        assert koinon.KoinonError.__module__ == "koinon_child.own", koinon.KoinonError.__module__
    else:
        sys.exit("koinon is installed here")
    with koinon.join() as session:
        print(session.run, sys.version_info[:2], flush=True)
        try:
            model = {"x": numpy.zeros(2)} if numpy else {"x": [0.0]}
            for task in session.tasks(model):
                task.descend({"x": numpy.ones(2)}, lr=0.5)
                task.submit(examples=3)
        except koinon.UsageError as error:
            print(error)
"""


@pytest.mark.skipif(not list(pythons()), reason="no older Python on this machine")
@pytest.mark.parametrize("python", list(pythons()))
def test_it_runs_in_an_older_python_without_koinon(tmp_path, python):
    worker = PlayedWorker(tmp_path)
    shutil.copytree(
        PACKAGE, tmp_path / "child" / "koinon_child", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "child"), "KOINON_SOCKET": str(worker.path),
    }  # fmt: skip
    command = [python, "-c", textwrap.dedent(PROGRAM)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as program:
        try:
            hello = worker.greet()
            version = ".".join(hello["python"].split(".")[:2])
            assert version in python
            if has(python, "numpy"):
                worker.hear("ready")
                worker.say("accepted")
                _, saved = worker.work(load=worker.file("load", x=np.array([1.0, 2.0])), mu=0.5)
                assert saved["x"].tolist() == [0.5, 1.5]
                worker.say("ended", status="finished", reason="")
            said = program.communicate(timeout=10)[0]
        finally:
            program.kill()
            worker.close()
    assert said.startswith("defects (3, ")
    assert has(python, "numpy") or "a dict cannot be federated" in said
    assert program.returncode == 0


@pytest.mark.parametrize("python", list(pythons()))
def test_every_file_compiles_in_an_older_python(python):
    code = "import sys\nfor p in sys.argv[1:]: compile(open(p).read(), p, 'exec')"
    subprocess.run([python, "-c", code, *map(str, FILES)], check=True)
