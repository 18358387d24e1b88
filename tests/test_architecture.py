"""Who imports whom, as CONTRIBUTING.md says, and how the package is divided."""

import ast
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "atlalign"
MODULES = sorted(PACKAGE.rglob("*.py"))
# What stands later may import what stands earlier; rooms in one tuple do not import each other.
LAYERS = (
    ("console", "hydra_messages"),
    ("errors", "__init__"),
    ("imports",),
    ("versions", "arguments", "declarations"),
    ("geometry", "io"),
    ("networks", "losses", "metrics", "plots", "pages", "displacement_field", "atlas"),
    ("data",),
    ("synthesis",),
    ("models",),
    ("recognition",),
    ("training", "registration", "sections"),
    ("evaluation", "localization"),
    ("review",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# One field as users hold it draws itself, and the package hands it out.
ALLOWED = {("displacement_field", "plots"), ("__init__", "displacement_field")}
LARGEST_SHARE = 0.22


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "atlalign":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("atlalign.")}
    return {name if name in LEVEL else "__init__" for name in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room(path)
    for other in imported_rooms(path) - {own}:
        assert LEVEL[other] < LEVEL[own] or (own, other) in ALLOWED, f"{own} imports {other}"


def test_no_room_is_too_large():
    lines = Counter()
    for path in MODULES:
        lines[room(path)] += len(path.read_text().splitlines())
    name, largest = lines.most_common(1)[0]
    assert largest / lines.total() <= LARGEST_SHARE, name


def test_modules_do_not_import_in_circles():
    names = {".".join(("atlalign", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in MODULES}
    arrows = {}
    for name, path in names.items():
        if path.stem == "__init__":  # a room's front door imports its modules, which never import it
            continue
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        arrows[name] = {node.module for node in top if node.module in names}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        for other in sorted(arrows.get(name, set()) - done):
            visit(other, (*trail, name))
        done.add(name)

    for name in arrows:
        visit(name, ())


def test_every_room_has_a_place():
    assert {room(path) for path in MODULES} <= set(LEVEL)
    assert all(set(low).isdisjoint(high) for low, high in pairwise(LAYERS))
