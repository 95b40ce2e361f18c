"""Draw who imports whom into CONTRIBUTING.md, from the imports themselves.

    python tools/draw_house.py

A room is a folder of advisor/ or trainer/ with all below it; studio/ and profiles/ are one each.
The files that are directly in a house are two rooms: the ground floor, which needs no other room of
the house, and the files above it. tests/test_borders.py compares the picture and
takes its circles from `imports`.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOUSES = ("studio", "advisor", "trainer", "profiles")
WHOLE = ("studio", "profiles")  # each one room
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- tools/draw_house.py -->", "<!-- /tools/draw_house.py -->"

Graph = dict[str, set[str]]


def imports(root: Path = ROOT) -> Graph:
    """Each module of the houses, and those of them that it imports anywhere, types included."""
    paths = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for house in HOUSES
        for path in (root / house).rglob("*.py")
        if path != root / house / "__main__.py"  # is the house's command line, by another name
    }
    return {name: _imported(path, set(paths)) for name, path in paths.items()}


def _imported(path: Path, known: set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: write imports out"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inner}
    return found & known


def picture(graph: Graph) -> list[str]:
    """The rooms as a Mermaid diagram: an arrow from the room that imports to the one it needs.

    Arrows that follow from others are left out. Dashed ones point upwards in the order of the
    rooms that has the fewest such imports; there is no circle of files behind them.
    """
    rooms = {module: _room(module, graph) for module in graph}
    pairs = [(rooms[a], rooms[b]) for a, imported in graph.items() for b in imported]
    counts = Counter((a, b) for a, b in pairs if a != b)
    place = {room: at for at, room in enumerate(_ordered(sorted(set(rooms.values())), counts))}
    needs = {room: {to for a, to in counts if a == room} for room in place}
    down = {room: {to for to in needs[room] if place[to] > place[room]} for room in place}
    lines = ["```mermaid", "flowchart TD"]
    for house in HOUSES:
        inside = sorted(room for room in needs if room.split("/")[0] == house)
        lines += [f'  subgraph {house}_house ["{house}/"]']
        lines += [f'    {_id(room)}["{_label(room, rooms)}"]' for room in inside]
        lines += ["  end"]
    for room in sorted(needs):
        direct = {to for to in down[room] if not _reached(down[room] - {to}, to, down)}
        lines += [f"  {_id(room)} --> {_id(to)}" for to in sorted(direct)]
        lines += [f"  {_id(room)} -.-> {_id(to)}" for to in sorted(needs[room] - down[room])]
    return [*lines, "```"]


def _room(module: str, graph: Graph) -> str:
    """The room of a module, such as `trainer/data`, `trainer/(ground floor)` or `profiles`."""
    house, *inner = module.split(".")
    if house in WHOLE or not inner:
        return house if house in WHOLE else f"{house}/(ground floor)"
    if _folder(house, inner[0], graph):
        return f"{house}/{inner[0]}"
    below = (other.split(".") for other in _reach(module, graph))
    needs_rooms = any(
        other[0] == house and len(other) > 1 and _folder(*other[:2], graph) for other in below
    )
    return f"{house}/(top)" if needs_rooms else f"{house}/(ground floor)"


def _folder(house: str, name: str, graph: Graph) -> bool:
    return any(module.startswith(f"{house}.{name}.") for module in graph)


def _reach(module: str, graph: Graph) -> set[str]:
    """All modules that one imports, directly or through others."""
    found: set[str] = set()
    left = [module]
    while left:
        new = graph[left.pop()] - found
        found |= new
        left += new
    return found


def _ordered(rooms: list[str], counts: Counter[tuple[str, str]]) -> list[str]:
    """The rooms from top to bottom with few imports upwards (Eades, Lin and Smyth, 1993)."""
    top: list[str] = []
    bottom: list[str] = []
    while left := [room for room in rooms if room not in top and room not in bottom]:
        given = {room: sum(counts[room, other] for other in left) for room in left}
        taken = {room: sum(counts[other, room] for other in left) for room in left}
        if sinks := [room for room in left if not given[room]]:
            bottom[:0] = sinks
        else:
            top.append(max(left, key=lambda room: (not taken[room], given[room] - taken[room])))
    return top + bottom


def _reached(starts: set[str], goal: str, arrows: dict[str, set[str]]) -> bool:
    """Whether arrows lead from one of `starts` to `goal`."""
    return goal in starts or any(_reached(arrows[start], goal, arrows) for start in starts)


def _id(room: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in room)


def _label(room: str, rooms: dict[str, str]) -> str:
    """The room's name; under it the folders in it, or the files of a room without a folder."""
    names = [module.split(".") for module, own in rooms.items() if own == room]
    if room.endswith(")"):
        inner = {f"{name[1]}.py" for name in names if len(name) > 1}
    else:
        depth = len(room.split("/"))
        inner = {f"{name[depth]}/" for name in names if len(name) > depth + 1}
    shown = sorted(inner)
    rows = [", ".join(shown[at : at + 3]) for at in range(0, len(shown), 3)]
    return "<br>".join([room, *rows])


def drawn(page: str) -> str:
    """The page with the picture between its marks. Raises ValueError if it lacks them."""
    head, begun, rest = page.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page lacks {BEGIN} … {END}")
    return "\n".join([head + BEGIN, *picture(imports()), END + tail])


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
