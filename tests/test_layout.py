"""The shape of the package: imports point upward in the reading order, and help is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pgjax

PACKAGE = Path(pgjax.__file__).parent
ROOMS = [
    "errors",
    "cores",
    "rundir",
    "types",
    "sharding",
    "environments",
    "distributions",
    "networks",
    "normalize",
    "rollout",
    "returns",
    "losses",
    "optimizers",
    "algorithms",
    "train",
    "evaluate",
    "population",
    "programs",
    "checkpoint",
    "logging",
    "run",
    "statistics",
    "plotting",
    "axes",
    "search",
    "plan",
    "results",
    "sweep",
    "optuna_search",
    "presets",
    "flags",
    "cli",
]


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pgjax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pgjax."))


def test_every_room_is_on_the_list_and_imports_point_upward():
    files = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]
    assert {room_of(p) for p in files} == set(ROOMS)
    for path in files:
        for room in imported_rooms(path):
            assert ROOMS.index(room) <= ROOMS.index(room_of(path)), f"{path} imports {room}, which comes later"


def test_docstring_gives_the_reading_order():
    order = re.sub(r"\s+", " ", pgjax.__doc__).partition("in this order: ")[2].partition(". ")[0]
    assert order.split(", ") == ROOMS


def test_only_gymnax_py_knows_gymnax():
    users = {p.name for p in PACKAGE.rglob("*.py") if re.search(r"^\s*(import|from) gymnax", p.read_text(), re.M)}
    assert users <= {"gymnax.py"}


def run_python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_help_and_listings_import_neither_jax_nor_gymnax():
    for arguments in (["--help"], ["envs"], ["algorithms"]):
        heavy = "print([m for m in ('jax', 'gymnax') if m in sys.modules])"
        out = run_python(f"import sys, pgjax.cli; pgjax.cli.main({arguments}); {heavy}")
        assert out.splitlines()[-1] == "[]"
        assert len(out.splitlines()) > 1


def test_functions_are_not_hidden_by_modules_of_the_same_name():
    out = run_python("""
import pgjax.train, pgjax.run, pgjax.evaluate
print(callable(pgjax.train), callable(pgjax.run), callable(pgjax.evaluate))
""")
    assert out.split() == ["True"] * 3
    assert "PPO" in dir(pgjax)
