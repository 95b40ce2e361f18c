"""The arrows of the house: studio -> all; trainer.cli -> advisor -> profiles, trainer -> profiles.

Each module is imported in a process of its own, because what one test imports another would see.
"""

import ast
import pkgutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import advisor
import profiles
import studio
from tools.draw_house import END, PAGE, drawn, picture
from tools.draw_house import imports as read_imports

ROOT = Path(advisor.__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "cv2", "trainer"}

PROBE = """
import importlib, os, sys
before, modules, forbidden = (set(words.split()) for words in sys.argv[1:])
for name in before:
    importlib.import_module(name)
for name in sorted(modules):
    if os.fork() == 0:
        try:
            importlib.import_module(name)
            found = forbidden & set(sys.modules)
        except BaseException as error:
            found = {repr(error)}
        for one in sorted(found):
            print(name, one, flush=True)
        os._exit(0)
    os.wait()
print("ended")
"""


@cache
def imports() -> dict[str, set[str]]:
    """Who imports whom, read once for all tests."""
    return read_imports()


def _modules(package) -> list[str]:
    names = [
        found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    ]
    return [package.__name__, *names]


def _strangers(modules: list[str], forbidden: set[str], before: str = "") -> list[str]:
    """What each of some modules imports of `forbidden`, or why it cannot be imported.

    Each in a process forked off one that has imported only `before`: what most of them need, which
    takes most of the time, and counts for each.
    """
    command = [sys.executable, "-c", PROBE, before, " ".join(modules), " ".join(forbidden)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    *found, end = result.stdout.splitlines()
    assert end == "ended", result.stderr
    return found


def test_the_advisor_imports_neither_torch_nor_the_trainer():
    modules = _modules(advisor)
    assert "advisor.cli.main" in modules and "advisor.machine.probe" in modules
    before = "pydantic psutil typer rich.console profiles.tested advisor.preflight"
    assert _strangers(modules, HEAVY, before) == []


def test_profiles_import_neither_torch_nor_the_others():
    modules = _modules(profiles)
    assert "profiles.plan" in modules and "profiles.tested" in modules
    assert _strangers(modules, HEAVY | {"advisor", "rich"}, "pydantic profiles.plan") == []


def test_the_pages_server_computes_nothing_itself():
    """It stays up while others train, so it must not hold a model's libraries, or a GPU."""
    modules = _modules(studio)
    assert "studio.app" in modules and "studio.training" in modules
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}
    before = "pydantic psutil starlette.applications profiles.tested trainer.data.images"
    assert _strangers(modules, heavy, f"{before} advisor.cli.main") == []


def test_nothing_needs_the_page():
    for name, imported in imports().items():
        assert name.startswith("studio") or not [n for n in imported if n.startswith("studio")]


def test_a_run_is_resumed_and_its_smaller_plan_chosen_before_torch_is_imported():
    """One process more would else wait seconds, and hold memory, only to start the others."""
    modules = ["trainer.cli.start", "trainer.run.resume", "trainer.run.shortages",
               "trainer.run.data_digests", "advisor.fallback"]  # fmt: skip
    assert _strangers(modules, {"torch"}, "pydantic psutil") == []


def test_a_bare_advisor_loads_nothing_heavy_for_help():
    heavy = {"pydantic", "psutil", "pynvml", "rich.table"}
    assert _strangers(["advisor.cli.main"], heavy) == []


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
    assert askers and all(place.startswith("trainer/cli/") for place in askers), askers


def test_no_files_import_each_other_in_a_circle():
    """Take away what imports nothing that is left, again and again: a circle stays."""
    left = imports()
    while ends := {name for name, imported in left.items() if not imported & left.keys()}:
        left = {name: imported for name, imported in left.items() if name not in ends}
    assert not left


def test_the_model_imports_nothing_of_the_data():
    for name, imported in imports().items():
        if name.startswith("trainer.model"):
            assert not [one for one in imported if one.startswith("trainer.data")], name


def test_what_runs_knows_nothing_of_the_command_lines():
    for name, imported in imports().items():
        if not name.startswith(("trainer.cli", "advisor.cli")):
            assert not [one for one in imported if ".cli" in one], name


def test_the_picture_of_the_house_is_that_of_its_imports():
    page = PAGE.read_text(encoding="utf-8")
    assert drawn(page) == page, "python tools/draw_house.py draws it anew"
    with pytest.raises(ValueError, match="lacks"):
        drawn(page.replace(END, ""))


def test_the_picture_leaves_out_what_follows_and_dashes_what_points_upwards():
    graph = {
        "profiles.plan": set(),
        "trainer.step": {"trainer.run.run", "profiles.plan"},
        "trainer.run.run": {"profiles.plan", "trainer.batch"},
        "trainer.run.state": {"trainer.data.samples", "trainer.data.images"},
        "trainer.data.samples": {"trainer.batch"},
        "trainer.data.images": {"trainer.run.run"},
        "trainer.batch": {"profiles.plan"},
    }
    assert [line.strip() for line in picture(graph) if "->" in line] == [
        "trainer__ground_floor_ --> profiles",
        "trainer__top_ --> trainer_run",
        "trainer_data --> trainer__ground_floor_",
        "trainer_data -.-> trainer_run",
        "trainer_run --> trainer_data",
    ]


def test_what_kind_of_model_it_is_the_profile_says():
    folders = ("advisor", "trainer", "studio", "tools", "benchmarks")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        compared = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                    if isinstance(node, ast.Compare)]  # fmt: skip
        named = [one.lineno for node in compared for one in ast.walk(node)
                 if isinstance(one, ast.Constant) and one.value == "tiny"]  # fmt: skip
        assert not named, f"{path}:{named}: ask the profile, such as for `packaged`"


def test_only_families_know_their_modules():
    """Whoever needs to know asks `family_of`, or the profile."""
    of_families = ("profiles.families.", "trainer.model.families.")
    for name, imported in imports().items():
        inside = next((f"{place}{name.removeprefix(place).partition('.')[0]}"
                       for place in of_families if name.startswith(place)), None)  # fmt: skip
        for one in imported:
            if one.startswith(of_families):
                family = ".".join(one.split(".")[: 3 + one.startswith("trainer")])
                own = inside and family.rpartition(".")[2] == inside.rpartition(".")[2]
                assert own, f"{name} imports {one}"
