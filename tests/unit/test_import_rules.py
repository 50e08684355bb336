"""Which part may import which: data flows one way, Ray stays at one edge, and nothing needs what it should not.

A new module fails here until it has its line in MAY_IMPORT: choose what it may lean on, and keep the list short.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "tlray"

# A room, or a module beside the rooms, and what it may import of the rest of tlray. `errors` is for everybody.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"export"},
    "__main__": {"cli"},
    "errors": set(),
    # what the user says, this process, and where things lie
    "config": set(),
    "process": set(),
    "storage": {"process"},
    # models and images
    "catalogue": {"config", "process", "storage"},
    "models": {"catalogue", "config", "storage"},
    "data": {"catalogue", "config", "process", "storage"},
    "activations": {"catalogue", "config", "data", "models", "process", "storage"},
    # a run, and one trial of it
    "runs": {"activations", "config", "data", "process", "storage"},
    "training": {"activations", "catalogue", "config", "data", "models", "process", "runs", "storage"},
    # what is decided before a sweep
    "ranking": {"activations", "config", "data", "models", "runs", "storage", "training"},
    "planning": {
        "activations",
        "catalogue",
        "config",
        "data",
        "models",
        "process",
        "ranking",
        "runs",
        "storage",
        "training",
    },
    # what comes out of one
    "export": {"catalogue", "config", "data", "models", "process", "runs", "storage"},
    "inference": {"catalogue", "data", "export", "models", "process", "runs", "storage", "training"},
    "report": {"catalogue", "config", "data", "process", "ranking", "runs", "storage", "training"},
    # the cluster
    "distributed": {
        "activations",
        "catalogue",
        "config",
        "data",
        "export",
        "inference",
        "planning",
        "process",
        "ranking",
        "runs",
        "storage",
        "training",
    },
    # what a person starts
    "workflows": {
        "activations",
        "catalogue",
        "config",
        "data",
        "distributed",
        "export",
        "inference",
        "planning",
        "process",
        "ranking",
        "report",
        "runs",
        "storage",
        "training",
    },
}
ENTRY_POINT = "cli"  # imports everything, inside its functions
NEED_RAY = {"tlray.workflows.run", "tlray.workflows.demo"}  # the only ones that import tlray.distributed at their top
NOT_IN_AN_INSTALLATION = ["ray", "pytest", "sklearn", "moto", "mypy", "ruff"]

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The top-level module or folder of tlray that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> set[str]:
    """Full names of everything that a file imports, also inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_part_may(path: Path) -> None:
    part = part_of(path)
    if part == ENTRY_POINT:
        return
    assert part in MAY_IMPORT, f"give tlray/{part} a line in MAY_IMPORT of {Path(__file__).name}"
    used = {name.split(".")[1] for name in imported_names(path) if name.startswith("tlray.")}
    too_much = used - MAY_IMPORT[part] - {part, "errors", "__version__"}
    assert not too_much, f"{path.relative_to(ROOT)} imports {sorted(too_much)}, which tlray/{part} may not lean on"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_is_imported_in_the_folder_distributed_only(path: Path) -> None:
    if part_of(path) != "distributed":
        assert not any(name.split(".")[0] == "ray" for name in imported_names(path))


def test_no_part_leans_on_one_that_leans_on_it() -> None:
    order: list[str] = []
    waiting = {part: allowed & MAY_IMPORT.keys() - {part} for part, allowed in MAY_IMPORT.items()}
    while waiting:
        ready = [part for part, allowed in waiting.items() if allowed <= set(order)]
        assert ready, f"these parts lean on each other in a circle: {sorted(waiting)}"
        order += ready
        waiting = {part: allowed for part, allowed in waiting.items() if part not in ready}


def test_every_line_of_the_table_is_about_a_module_that_exists() -> None:
    assert set(MAY_IMPORT) <= {part_of(path) for path in MODULES}


IMPORT_WITHOUT = """
import importlib, json, sys

blocked, light, modules = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))  # None there: the import fails, and find_spec finds nothing
failures = {}
for name in light + [name for name in modules if name not in light]:
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = f"{type(error).__name__}: {error}"
    if name in light and "torch" in sys.modules:
        failures[name] = "imports torch"
print(json.dumps(failures))
"""


def test_everything_but_the_sweep_imports_without_ray_and_what_only_tests_need() -> None:
    light = ["tlray", "tlray.cli", "tlray.config.file", "tlray.config.search_space", "tlray.storage", "tlray.catalogue"]
    modules = [module_name(path) for path in MODULES if part_of(path) != "distributed"]
    modules = [name for name in modules if name not in NEED_RAY]
    arguments = json.dumps([NOT_IN_AN_INSTALLATION, light, modules])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_the_driver_of_a_sweep_imports_no_torch() -> None:
    """It runs on a small head; Ray's workers are the first to import it."""
    program = (
        "import sys; import tlray.workflows.run, tlray.distributed.tune_trials; "
        "print([name for name in ('torch', 'torchvision', 'timm', 'onnx', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
