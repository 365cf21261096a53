# SPDX-License-Identifier: Apache-2.0
"""The house's own rules: floors, headers, sizes, exports, the files at its door."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import scm_lightning

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scm_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "core": 1,
    "autodiff": 2,
    "networks": 3,
    "sampling": 3,
    "storage": 3,
    "text": 3,
    "data": 4,
    "metrics": 4,
    "objectives": 5,
    "teachers": 5,
    "modules": 6,
    "bench": 7,
    "callbacks": 7,
    "export": 7,
    "preparation": 7,
    "cli": 8,
}
AT_THE_DOOR = {
    ".gitignore",
    ".gitlab-ci.yml",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "pyproject.toml",
}
SELF_CONTAINED = PACKAGE / "export" / "pipeline.py"
"""A copy of it works without this package; here it is imported by files that mend torchvision."""
TORCH_ONLY = {"core", "autodiff", "networks"}
NO_BEGINNINGS = {
    *("How", "What", "Where", "Whether", "Which", "When", "Who", "Whose", "Why"),
    *("Are", "Does", "Is", "Was", "As", "If", "Of", "So", "That"),
}


def imported(file: Path) -> list[str]:
    """Full names of the modules that a file imports, lazily or not."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names.append(node.module)
    return names


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    """A room imports itself and lower floors; never a sibling."""
    if room(file) not in FLOORS:
        return
    for name in imported(file):
        parts = name.split(".")
        if parts[0] == "scm_lightning" and len(parts) > 1 and parts[1] in FLOORS:
            other = parts[1]
            assert other == room(file) or FLOORS[other] < FLOORS[room(file)], f"imports {name}"
        if room(file) in TORCH_ONLY:
            allowed = {"scm_lightning", "torch", "numpy", "triton"}
            assert parts[0] in allowed | set(sys.stdlib_module_names), f"imports {name}"


def test_every_room_has_a_floor():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize(
    "file",
    [*FILES, *sorted((ROOT / "tests").rglob("*.py"))],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_every_file_has_a_header_a_docstring_and_a_readable_length(file):
    text = file.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 320


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_functions_are_short(file):
    """At most 40 lines without the docstring."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_docstrings_begin_with_what_they_describe(file):
    """With an imperative or a noun, those below a constant too: no question, no part of one."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            beginning = str(node.value.value).split(maxsplit=1)[0].rstrip(",.:")
            assert beginning not in NO_BEGINNINGS, f"line {node.lineno} begins with {beginning}"


def test_public_names_are_those_promised():
    for name in scm_lightning.__all__:
        assert getattr(scm_lightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = scm_lightning.Nothing


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_every_room_lists_what_it_offers(name):
    module = importlib.import_module(f"scm_lightning.{name}")
    assert all(hasattr(module, each) for each in module.__all__)
    assert f"Floor {FLOORS[name]}:" in module.__doc__


def test_no_path_of_a_machine_is_written_down():
    for file in [*FILES, *ROOT.glob("*.md"), *(ROOT / "configs").glob("*")]:
        if file.is_file() and file.suffix in {".py", ".md", ".yaml"}:
            assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users)/", file.read_text()), file


def test_the_top_level_holds_what_people_look_for_and_nothing_else():
    assert {path.name for path in ROOT.iterdir() if path.is_file()} - {".git"} == AT_THE_DOOR


def test_one_version_everywhere():
    project, citation = ((ROOT / name).read_text() for name in ("pyproject.toml", "CITATION.cff"))
    assert f'\nversion = "{scm_lightning.__version__}"\n' in project
    assert f"\nversion: {scm_lightning.__version__}\n" in citation


def test_the_oldest_versions_promised_are_those_tested():
    """Every lower bound of pyproject.toml is a pin of tests/lowest.txt."""
    promised = re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    pinned = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests/lowest.txt").read_text(), re.M)
    tested = {name: Version(version) for name, version in pinned}
    bounds = {name: Version(version) for name, version in promised if name != "setuptools"}
    assert bounds.items() <= tested.items()


def test_a_broken_torchvision_is_mended_before_it_is_imported():
    """Each file alone, as a process of `scm` may begin with it; or the room, before its files."""
    guard, breaking = (
        "scm_lightning.torchvision_guard",
        {"lightning", "torchmetrics", "diffusers", "transformers"},
    )
    for file in sorted({*FILES} - {SELF_CONTAINED}):
        names = []
        for path in {file.parent / "__init__.py", file} if file.parent != PACKAGE else {file}:
            found = [
                alias.name if isinstance(node, ast.Import) else node.module
                for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in (node.names if isinstance(node, ast.Import) else [node])
            ]
            names = [*found, *names] if path.name == "__init__.py" else [*names, *found]
        first = next((n for n, name in enumerate(names) if name.split(".")[0] in breaking), None)
        assert first is None or guard in names[:first], file


AT_WORK = """
import importlib, sys, traceback
import scm_lightning.torchvision_guard
import torch
from torch.utils._python_dispatch import TorchDispatchMode

class Said(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        at = [each for each in traceback.extract_stack() if each.filename.startswith(sys.argv[1])]
        if at and not at[-1].line.startswith(("from ", "import ")):  # what torch does by itself
            print(func, at[-1].filename, at[-1].lineno)
        return func(*args, **(kwargs or {}))

with Said():
    for room in sys.argv[2:]:
        importlib.import_module(f"scm_lightning.{room}")
"""


def test_importing_computes_nothing():
    """Threads that torch starts for an operation do not survive a fork of a job's processes."""
    command = [sys.executable, "-c", AT_WORK, str(PACKAGE), *sorted(FLOORS), "cli.app"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
