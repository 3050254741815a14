"""The syntax trees of server/, engine/ and model/ keep the rules of the house.

Each test lists the offenders: the file, and what it does. The order of the rooms is the table in ARCHITECTURE.md.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("server", "engine", "model")
SERVER_SEES = {"octavo.engine.api", "octavo.engine.child", "octavo.engine.client", "octavo.engine.config"}
COMPOSITION_ROOT = re.compile(r"server/cli\.py|server/commands/\w+\.py")
TORCH = re.compile(r"engine/(compute|startup)/|model/")
NO_TORCH_IN_MODEL = re.compile(
    r"model/(config\.py|config_file\.py|loading/(hub|mistaken)\.py|weights/reserve\.py|prepared/|demo/)"
)
LONGEST_FUNCTION, LONGEST_FILE, MOST_PARAMETERS = 50, 350, 6


@dataclass(frozen=True)
class Source:
    name: str  # server/http/errors.py
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        return "octavo." + self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def nodes(self) -> Iterator[ast.AST]:
        return ast.walk(self.tree)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (node for node in self.nodes() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    def imported(self) -> Iterator[str]:
        """Yields dotted names, with the imported member: `from octavo.engine import api` gives octavo.engine.api."""
        for node in self.nodes():
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: imports are absolute"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def source(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text))


@cache
def sources() -> tuple[Source, ...]:
    return tuple(source(path) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))


@cache
def benchmarks() -> tuple[Source, ...]:
    return tuple(source(path) for path in sorted((ROOT / "benchmarks").rglob("*.py")))


@cache
def everything() -> tuple[Source, ...]:
    """Returns the tests and the benchmarks, too."""
    others = (path for top in ("tests", "benchmarks") for path in sorted((ROOT / top).rglob("*.py")))
    return (*sources(), *map(source, others))


@cache
def rooms() -> tuple[str, ...]:
    """Returns the rooms of the table in ARCHITECTURE.md, from the top floor down; a row may hold several files."""
    rows = re.findall(r"^\| ((?:`[\w/.]+`,? ?)+)\|", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.MULTILINE)
    return tuple(row for row in rows if re.search(r"`(server|engine|model)/", row))


def floor(name: str) -> int | None:
    """Returns the floor of a file, counted from the top; None if it is in no room."""
    for number, row in enumerate(rooms()):
        for room in re.findall(r"`([\w/.]+)`", row):
            if name == room or (room.endswith("/") and name.startswith(room)):
                return number
    return None


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Returns whether it is written in Triton's language: a pointer per tensor, sizes one by one, no types."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)


def test_each_file_has_a_room() -> None:
    faces = {f"{folder}/__init__.py" for folder in FOLDERS}
    assert [each.name for each in sources() if floor(each.name) is None and each.name not in faces] == []


def test_no_import_runs_back_up() -> None:
    """A file imports from its own room and from the rooms below it, whatever folder they are in."""
    files = {each.module: each for each in sources()}

    def target(name: str) -> Source | None:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return files.get(name)

    offenders = []
    for each in sources():
        for name in each.imported():
            found = target(name) if name.startswith("octavo.") else None
            above, below = floor(each.name), found and floor(found.name)
            if above is not None and below is not None and below < above:
                offenders.append(f"{each.name} imports {name}")
    assert offenders == []


def test_folders_see_what_is_theirs() -> None:
    """server/ knows four files of engine/ and nothing of model/; only the composition root knows more."""
    offenders = []
    for each in sources():
        if each.name.startswith("server/") and not COMPOSITION_ROOT.fullmatch(each.name):
            strange = [name for name in each.imported() if name.startswith(("octavo.engine", "octavo.model"))]
            strange = [name for name in strange if ".".join(name.split(".")[:3]) not in SERVER_SEES]
            offenders += [f"{each.name} imports {name}" for name in strange]
    assert offenders == []


def test_there_is_one_import_name() -> None:
    """The top-level folders are parts of octavo, and imported as such everywhere, so that each class exists once."""
    bare = [f"{each.name} imports {name}" for each in everything() for name in each.imported()]
    assert [line for line in bare if line.split(" imports ")[1].split(".")[0] in FOLDERS] == []


def test_json_of_clients_and_models_comes_in_by_one_door() -> None:
    """Only files of a checkpoint are read past http/reading.py, which takes out what no encoder takes.

    parts.py keeps nothing of what it reads: it asks whether a text is complete.
    """
    files = {"server/text/checkpoint_files.py", "server/text/tokenizer.py", "server/conversation/parts.py"}
    readers = [each.name for each in sources() if each.name.startswith("server/") and "json.load" in each.text]
    assert [name for name in readers if name not in files] == []


def test_torch_is_imported_where_tensors_are() -> None:
    offenders = []
    for each in sources():
        allowed = TORCH.match(each.name) and not NO_TORCH_IN_MODEL.match(each.name)
        if not allowed and any(name.split(".")[0] == "torch" for name in each.imported()):
            offenders.append(each.name)
    assert offenders == []


def test_triton_stays_with_its_kernels() -> None:
    strange = [each for each in sources() if not each.name.startswith("model/kernels/gpu/")]
    assert [each.name for each in strange if "triton" in {name.split(".")[0] for name in each.imported()}] == []


def test_state_is_passed_as_arguments() -> None:
    offenders = []
    for each in sources():
        for node in each.nodes():
            if isinstance(node, ast.Global):
                offenders.append(f"{each.name}:{node.lineno} has a global")
            if has_default(node) and each.name != "model/config.py":
                offenders.append(f"{each.name}:{node.lineno} has a getattr with a default")
            if reads_environment(node) and not COMPOSITION_ROOT.fullmatch(each.name):
                offenders.append(f"{each.name}:{node.lineno} reads the environment")
    assert offenders == []


def has_default(node: ast.AST) -> bool:
    is_getattr = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
    return is_getattr and len(node.args) > 2


def reads_environment(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}


def test_benchmarks_share_only_what_is_common() -> None:
    """A room of benchmarks/ imports from itself and from common/, and nothing else imports from benchmarks/."""

    def room(name: str) -> str:
        parts = name.split("/")
        return parts[1] if len(parts) > 2 else ""

    offenders = [f"{each.name} imports {name}" for each in sources() for name in each.imported() if is_benchmark(name)]
    for each in benchmarks():
        allowed = {"common", room(each.name)}
        strange = (name for name in each.imported() if is_benchmark(name) and name.split(".")[1] not in allowed)
        offenders += [f"{each.name} imports {name}" for name in strange]
    assert offenders == []


def is_benchmark(name: str) -> bool:
    return name.split(".")[0] == "benchmarks"


def test_everything_fits_on_a_screen() -> None:
    offenders = []
    for each in (*sources(), *benchmarks()):
        lines = len(each.text.splitlines())
        if lines > LONGEST_FILE:
            offenders.append(f"{each.name} has {lines} lines")
        for function in each.functions():
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > LONGEST_FUNCTION:
                offenders.append(f"{each.name}: {function.name} has {lines} lines")
            names = {arg.arg for arg in function.args.args + function.args.kwonlyargs} - {"self", "cls"}
            if len(names) > MOST_PARAMETERS and not is_kernel(function):
                offenders.append(f"{each.name}: {function.name} takes {len(names)} parameters")
    assert offenders == []


def test_only_kernels_go_without_types() -> None:
    offenders = []
    for each in (*sources(), *benchmarks()):
        for function in each.functions():
            arguments = [arg for arg in function.args.args + function.args.kwonlyargs if arg.arg not in {"self", "cls"}]
            typed = function.returns is not None and all(arg.annotation for arg in arguments)
            if not typed and not is_kernel(function):
                offenders.append(f"{each.name}: {function.name} lacks a type")
    assert offenders == []


def test_every_module_states_its_rule() -> None:
    """A module's docstring is its one-sentence rule."""
    assert [each.name for each in (*sources(), *benchmarks()) if not ast.get_docstring(each.tree)] == []


@pytest.mark.parametrize(
    "module",
    [
        "octavo.server.app",
        "octavo.server.cli",
        "octavo.server.lifecycle",
        "octavo.engine.process.client",
        "octavo.engine.startup.build",
        "octavo.model.config",
        "octavo.model.loading.hub",
        "octavo.model.gguf.companion",
    ],
)
def test_the_api_process_never_loads_the_engines_libraries(module: str) -> None:
    code = f"import sys, {module}; sys.exit(not sys.modules.keys().isdisjoint(('torch', 'llguidance')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_engine_runs_on_a_machine_that_has_little_but_torch() -> None:
    """The machines on which a GPU is tested and measured have no more."""
    absent = ("llguidance", "tokenizers", "fastapi", "uvicorn", "pydantic", "jinja2", "triton")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import octavo.engine.startup.start"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


FRAGMENT = re.compile(r"(Of|As|What|Those|How|Whether|That|Where|Who|Which)\b")


def test_no_docstring_opens_with_a_fragment() -> None:
    """A docstring is one or more plain sentences: a subject, or the function's own verb, comes first."""
    offenders = []
    for each in everything():
        for node in each.nodes():
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or "Nothing."
                if FRAGMENT.match(text):
                    offenders.append(f"{each.name}: {text.splitlines()[0]}")
    assert offenders == []
