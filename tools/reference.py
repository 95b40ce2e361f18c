"""Pages of the site that are made of the code: commands, and documented Python functions."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OURS = ("advisor", "profiles", "studio", "trainer")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_page() -> str:
    """Every command with its arguments, options and examples, as `--help` has them."""
    import typer

    from advisor.cli.main import app as advise
    from studio.main import app as studio
    from trainer.cli.segment import app as segment
    from trainer.cli.train import app as train

    parts = ["# Commands", "As `--help` of each command says, with the defaults of this version."]
    for name, app in (("lisa-advise", advise), ("lisa-train", train), ("lisa-segment", segment),
                      ("lisa-studio", studio)):  # fmt: skip
        for path, command in _below((name,), typer.main.get_command(app)):
            parts += _command(path, command)
    return "\n\n".join(parts) + "\n"


def _below(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        if not one.hidden:
            yield from _below((*path, name), one)


def _command(path: tuple[str, ...], command: Any) -> Iterator[str]:
    yield f"{'#' * (len(path) + 1)} {' '.join(path)}"
    yield _prose(inspect.cleandoc(command.help or ""))
    context = command.make_context(path[-1], [], resilient_parsing=True)
    shown = (one.get_help_record(context) for one in command.get_params(context))
    rows = [f"| `{_cell(names, raw=True)}` | {_cell(text)} |" for names, text in filter(None, shown)
            if not names.endswith("--help")]  # fmt: skip
    yield "\n".join(["| | |", "|---|---|", *rows])
    if command.epilog:
        examples = [line.strip() for line in command.epilog.splitlines()[2:]]
        yield "\n".join(["```bash", *examples, "```"])


def _prose(text: str) -> str:
    """Help as Markdown: nothing in it becomes a tag or emphasis by chance."""
    return re.sub(r"([<*_])", r"\\\1", text.replace("\b\n", ""))


def _cell(text: str, raw: bool = False) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if raw else _prose(text)


def functions_page(pages: Iterable[str]) -> str:
    """What the Python code of pages imports of ours: signatures and docstrings."""
    parts = [
        "# Python functions",
        "What the pages' Python code imports, as documented in the source.",
    ]
    functions_first = sorted(_imported(pages), key=lambda one: (one[1][0].isupper(), one))
    for module, name in functions_first:
        found = _definition(module, name)
        if found is None:
            raise ValueError(f"{module} has no {name}, which a page imports")
        parts += [f"## {module}.{name}", *_described(found)]
        if isinstance(found, ast.ClassDef):
            for method in found.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    parts += [f"### {name}.{method.name}", *_described(method)]
    return "\n\n".join(parts) + "\n"


def _imported(pages: Iterable[str]) -> set[tuple[str, str]]:
    blocks = (block for page in pages for block in PYTHON.findall(page))
    trees = (ast.walk(ast.parse(block)) for block in blocks)
    return {
        (node.module, alias.name)
        for tree in trees
        for node in tree
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(OURS)
        for alias in node.names
    }


Defined = ast.ClassDef | ast.FunctionDef


def _definition(module: str, name: str) -> Defined | None:
    """Where a name of a module is defined; it may be imported there from another of ours."""
    place = ROOT / Path(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, Defined) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OURS):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(str(node.module), alias.name)
    return None


def _described(node: Defined) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        made = [one for one in node.body if getattr(one, "name", "") == "__init__"]
        fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign)]
        lines = [f"class {node.name}:", *(f"    {field}" for field in fields)]
        lines += [f"    {_signature(one)}" for one in made if isinstance(one, ast.FunctionDef)]
    else:
        lines = [_signature(node)]
    yield "\n".join(["```python", *lines, "```"])
    if text := ast.get_docstring(node):
        yield text


def _signature(node: ast.FunctionDef) -> str:
    """A function's head, one parameter a line where it is long."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    whole = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(whole) <= 90:
        return whole
    given = [ast.arg(arg=f"{a.arg}", annotation=a.annotation) for a in node.args.args]
    shown = [ast.unparse(one) for one in given]
    for index, value in enumerate(reversed(node.args.defaults), 1):
        shown[-index] += f" = {ast.unparse(value)}"
    shown += ["*"] if node.args.kwonlyargs else []
    for one, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        shown.append(ast.unparse(one) + (f" = {ast.unparse(value)}" if value else ""))
    return "\n".join([f"def {node.name}(", *(f"    {one}," for one in shown), f"){returns}"])
