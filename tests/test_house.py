"""The rules of the house, held against the syntax trees of server/, engine/ and model/."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"server": {"server", "engine"}, "engine": {"engine", "model"}, "model": {"model"}}
SERVER_SEES = {"octavo.engine.api", "octavo.engine.client", "octavo.engine.config"}
TORCH_IN_ENGINE = {"compute", "startup"}
COMPOSITION_ROOT = "server/cli.py"
LONGEST_FUNCTION, LONGEST_FILE, MOST_PARAMETERS = 50, 350, 6

FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is Triton's language: a pointer per tensor, sizes one by one, no types."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names, with the imported member: `from engine import api` gives engine.api."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_allowed(path: Path, name: str) -> bool:
    folder, root = path.relative_to(ROOT).parts[0], name.removeprefix("octavo.").split(".")[0]
    if root == "torch":
        return folder == "model" or (folder == "engine" and path.parent.name in TORCH_IN_ENGINE)
    if folder == "server" and root == "engine":
        return ".".join(name.split(".")[:3]) in SERVER_SEES
    return root not in MAY_IMPORT or root in MAY_IMPORT[folder]


@each_file
def test_imports_run_one_way(path: Path) -> None:
    if name_of(path) != COMPOSITION_ROOT:
        assert [name for name in imported(tree_of(path)) if not is_allowed(path, name)] == []


@each_file
def test_state_is_passed_as_arguments(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        assert not isinstance(node, ast.Global)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            assert len(node.args) < 3 or name_of(path) == "model/config.py", (
                f"line {node.lineno}: getattr with a default"
            )
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
            assert name_of(path) == COMPOSITION_ROOT, f"line {node.lineno} reads the environment"


@each_file
def test_everything_fits_on_a_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"
            names = [arg.arg for arg in node.args.args + node.args.kwonlyargs]
            count = len([name for name in names if name not in {"self", "cls"}])
            assert count <= MOST_PARAMETERS or is_kernel(node), f"{node.name} takes {count} parameters"


@each_file
def test_only_kernels_go_without_types(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_kernel(node):
            names = [arg for arg in node.args.args + node.args.kwonlyargs if arg.arg not in {"self", "cls"}]
            assert node.returns is not None and all(arg.annotation for arg in names), f"{node.name} lacks a type"


@each_file
def test_triton_stays_with_its_kernels(path: Path) -> None:
    if path.parent != ROOT / "model" / "kernels" / "gpu":
        assert "triton" not in {name.split(".")[0] for name in imported(tree_of(path))}


@each_file
def test_every_module_states_its_rule(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "a module's docstring is its one-sentence rule"


@pytest.mark.parametrize(
    "module",
    [
        "octavo.server.app",
        "octavo.server.cli",
        "octavo.server.lifecycle",
        "octavo.engine.client",
        "octavo.engine.startup.build",
        "octavo.model.config",
        "octavo.model.loading.hub",
    ],
)
def test_the_api_process_never_loads_the_engines_libraries(module: str) -> None:
    code = f"import sys, {module}; sys.exit(not sys.modules.keys().isdisjoint(('torch', 'llguidance')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_engine_runs_on_a_machine_that_has_little_but_torch() -> None:
    """As those do on which a GPU is tested and measured."""
    absent = ("llguidance", "tokenizers", "fastapi", "uvicorn", "pydantic", "jinja2", "triton")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import octavo.engine.startup.start"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
