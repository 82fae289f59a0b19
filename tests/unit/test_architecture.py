"""The house's own rules, read from the code: who may import whom, and what a prediction may not bring in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "segship"
ORDER = [
    "errors",
    "manifest",
    "package",
    "plugins",
    "engines",
    "inference",
    "datasets",
    "metrics",
    "networks",
    "families",
    "convert",
    "measure",
    "training",
    "integrations",
    "workflow",
    "verbs",
    "serve",
    "cli",
]
ENGINE_LIBRARIES = {"openvino", "onnxruntime"}
TORCH_PLACES = {"networks", "families", "convert", "training"}
TORCH_FOLDER = SOURCE / "engines" / "pytorch_ops"  # itself imported only when a graph is opened on PyTorch


def _modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or not path.name.startswith("__"))


def _part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, at import time) for every import statement."""
    tree = ast.parse(path.read_text())
    found = []
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    typing_only = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "segship" else node.module for a in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
            continue
        eager = id(node) not in lazy and id(node) not in typing_only
        found += [(name, node.lineno, eager) for name in names]
    return found


def test_every_part_has_its_place_in_the_order():
    assert {_part(path) for path in _modules()} <= set(ORDER)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_a_part_imports_only_from_those_above_it(path):
    own = ORDER.index(_part(path))
    for name, line, _ in _imports(path):
        if name.startswith("segship."):
            other = name.split(".")[1]
            if other in ("__version__",):
                continue
            assert ORDER.index(other) <= own, f"{path.name}:{line} imports {name}, which stands below it"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_engines_are_the_only_files_that_import_an_engine(path):
    if _part(path) == "engines":
        return
    for name, line, _ in _imports(path):
        assert name.split(".")[0] not in ENGINE_LIBRARIES, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_torch_is_imported_only_where_it_belongs(path):
    for name, line, eager in _imports(path):
        heavy = name.split(".")[0] == "torch" or name.startswith("segship.engines.pytorch_ops")
        if heavy and _part(path) not in TORCH_PLACES and path.parent != TORCH_FOLDER:
            assert not eager, f"{path.name}:{line} imports {name} at import time"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_nothing_is_unpickled_outside_the_one_place(path):
    text = path.read_text()
    if path.name != "checkpoint.py":  # which unpickles by a list of names, or as --trust-pickle asks
        assert "weights_only=False" not in text
        assert "pickle.load" not in text
        assert "allow_pickle=True" not in text


HEAVY = ("torch", "matplotlib", "pandas", "onnx", "nncf", "sklearn", "jinja2")


def test_import_and_help_bring_in_nothing_heavy():
    code = (
        "import sys, segship, segship.cli\n"
        "segship.cli.run(['--help'])\n"
        f"heavy = [m for m in {(*HEAVY, 'openvino', 'onnxruntime', 'cv2', 'scipy')!r} if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_public_names_exist():
    import segship

    for name in segship.__all__:
        assert getattr(segship, name) is not None
    assert segship.__version__


def test_no_module_takes_the_name_of_a_function_beside_it():
    """Importing `package.name` sets `package.name` to the module: a function of that name would be gone from then on."""
    taken = []
    for path in SOURCE.rglob("__init__.py"):
        names = {s.name for s in ast.parse(path.read_text()).body if isinstance(s, ast.FunctionDef | ast.ClassDef)}
        taken += [f"{path.parent.name}.{name}" for name in names if (path.parent / f"{name}.py").exists()]
    assert not taken


def test_every_folder_says_what_belongs_in_it():
    for path in SOURCE.rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len(said.split()) > 12, f"{path.parent.name}: say in its __init__ what it is for"


def test_help_imports_no_torch():
    """Of every verb, and of what `prepare` and `train` hold: help comes at once, and where torch is not installed."""
    code = (
        "import sys, click, segship.cli as cli\n"
        "heavy = ('torch', 'onnx', 'nncf', 'openvino', 'onnxruntime', 'matplotlib', 'pandas', 'jinja2', 'fastapi')\n"
        "def visit(words, command, context):\n"
        "    assert cli.run([*words, '--help']) == 0, words\n"
        "    brought = [name for name in heavy if name in sys.modules]\n"
        "    assert not brought, (words, brought)\n"
        "    names = command.list_commands(context) if isinstance(command, click.Group) else []\n"
        "    for name in names:\n"
        "        visit([*words, name], command.get_command(context, name), context)\n"
        "    shown.append(' '.join(words))\n"
        "shown = []\n"
        "visit([], cli.cli, click.Context(cli.cli))\n"
        "print('shown:', ', '.join(shown))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()[-1]
    assert all(verb in shown for verb in ("export", "run,", "compile", "prepare kits19", "train unet3d_mlperf"))
