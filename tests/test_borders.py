"""The arrows of the house: trainer.cli -> advisor -> profiles, trainer -> profiles; no circles.

Each module is imported in a fresh interpreter, because what one test imports another would see.
"""

import ast
import os
import pkgutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import advisor
import profiles

ROOT = Path(advisor.__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "cv2", "trainer"}

PROBE = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


def _modules(package) -> list[str]:
    names = [
        found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    ]
    return [package.__name__, *names]


def _strangers(module: str, forbidden: set[str]) -> str:
    command = [sys.executable, "-c", PROBE, module, *sorted(forbidden)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return f"{module}: {result.stdout.strip() or result.stderr.strip()}"


def _all_strangers(modules: list[str], forbidden: set[str]) -> list[str]:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = pool.map(lambda module: _strangers(module, forbidden), modules)
    return [line for line in found if not line.endswith(": ")]


def test_the_advisor_imports_neither_torch_nor_the_trainer():
    modules = _modules(advisor)
    assert "advisor.cli.main" in modules and "advisor.machine.probe" in modules
    assert _all_strangers(modules, HEAVY) == []


def test_profiles_import_neither_torch_nor_the_others():
    modules = _modules(profiles)
    assert "profiles.plan" in modules and "profiles.tested" in modules
    assert _all_strangers(modules, HEAVY | {"advisor", "rich"}) == []


def test_a_bare_advisor_loads_nothing_heavy_for_help():
    assert _strangers("advisor.cli.main", {"pydantic", "psutil", "pynvml", "rich.table"}).endswith(
        ": "
    )


def _imports(path: Path) -> set[str]:
    """Top-level packages that a file names anywhere, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_no_import_hides_inside_a_function():
    for path in (ROOT / "advisor").rglob("*.py"):
        assert not _imports(path) & HEAVY, path
    for path in (ROOT / "profiles").rglob("*.py"):
        assert not _imports(path) & (HEAVY | {"advisor", "rich"}), path


def test_only_the_trainers_command_lines_ask_the_advisor():
    askers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "trainer").rglob("*.py")
        if "advisor" in _imports(path)
    }
    assert askers <= {f"trainer/cli/{name}.py" for name in ("train", "start", "segment")}


def _imported(path: Path, known: set[str]) -> set[str]:
    """The house's own files that a file imports anywhere, for type checks too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: write imports out"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inner}
    return found & known


def _graph() -> dict[str, set[str]]:
    """Which file of the three houses imports which."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for house in ("advisor", "profiles", "trainer")
        for path in (ROOT / house).rglob("*.py")
    }
    return {name: _imported(path, set(paths)) for name, path in paths.items()}


def test_no_files_import_each_other_in_a_circle():
    """Take away what imports nothing that is left, again and again: a circle stays."""
    left = _graph()
    while ends := {name for name, imported in left.items() if not imported & left.keys()}:
        left = {name: imported for name, imported in left.items() if name not in ends}
    assert not left


def test_the_model_imports_nothing_of_the_data():
    for name, imported in _graph().items():
        if name.startswith("trainer.model"):
            assert not [one for one in imported if one.startswith("trainer.data")], name


def test_what_runs_knows_nothing_of_the_command_lines():
    for name, imported in _graph().items():
        if not name.startswith(("trainer.cli", "advisor.cli")):
            assert not [one for one in imported if ".cli" in one], name


def test_only_families_know_their_modules():
    """Whoever needs to know asks `family_of`, or the profile."""
    of_families = ("profiles.families.", "trainer.model.families.")
    for name, imported in _graph().items():
        inside = next((f"{place}{name.removeprefix(place).partition('.')[0]}"
                       for place in of_families if name.startswith(place)), None)  # fmt: skip
        for one in imported:
            if one.startswith(of_families):
                family = ".".join(one.split(".")[: 3 + one.startswith("trainer")])
                own = inside and family.rpartition(".")[2] == inside.rpartition(".")[2]
                assert own, f"{name} imports {one}"


def test_no_size_is_known_by_its_name():
    """Whether a model comes with the package, its profile says (`packaged`)."""
    for house in ("advisor", "trainer"):
        for path in (ROOT / house).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    compared = [leaf for side in (node.left, *node.comparators)
                                for leaf in ast.walk(side)]  # fmt: skip
                    assert not any(isinstance(leaf, ast.Constant) and leaf.value == "tiny"
                                   for leaf in compared), f"{path}:{node.lineno}"  # fmt: skip
