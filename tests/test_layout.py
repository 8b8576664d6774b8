"""The shape of the package: imports point upward in the reading order, and help is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pgjax

PACKAGE = Path(pgjax.__file__).parent
FILES = {
    "core": [
        "errors",
        "cores",
        "own",
        "text",
        "hyperparameters",
        "metrics",
        "algorithm",
        "parts",
        "place",
        "processes",
        "devices",
    ],
    "environments": ["base", "catalog", "gymnax", "suite", "suites", "host", "wrappers", "own", "probes", "registry"],
    "networks": [
        "distributions",
        "network",
        "torsos",
        "heads",
        "feedforward",
        "critic",
        "recurrent",
        "decoder",
        "transformer",
        "families",
        "pretrained",
        "registry",
    ],
    "learning": [
        *("acting", "normalize", "rollout", "returns"),
        *("replay", "losses", "optimizers", "natural_gradient", "evaluation"),
    ],
    "algorithms": [
        *("in_environment", "on_policy", "reinforce", "vpg", "a2c", "npg", "trpo", "ppo"),
        *("off_policy", "ddpg", "td3", "sac", "discrete_sac"),
    ],
    "running": [
        *("directory", "loop", "population", "compile", "presets", "config", "checkpoint"),
        *("sinks", "session", "stopping", "numpy_policy", "export", "result", "shell"),
    ],
    "alignment": [
        *(
            "rewards",
            "grammar",
            "addition",
            "sums",
            "countdown",
            "walks",
            "constitution",
            "corpora",
            "tokenizers",
            "records",
            "packing",
            "data",
        ),
        *("generation", "models", "revision"),
        *("supervised", "lm", "sft", "reward_model", "process_reward_model", "dpo", "kto"),
        *("judge", "learned_rewards", "scoring", "sampling", "rlhf", "grpo", "rloo", "online_dpo"),
    ],
    "reporting": ["statistics", "listing", "plotting", "rendering", "again", "contents", "page"],
    "sweeping": ["space", "search", "plan", "result", "shell", "optuna"],
    "docs": ["equations", "excerpts", "generated", "hooks", "site"],
    "commands": ["flags", "launch", "cli"],
}
EXAMPLES = PACKAGE / "docs" / "examples"
"""Programs that a user would write: they are shown and run, and no file of the package imports them."""
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
ORDER = [f"{room}.{file}" for room, files in FILES.items() for file in ["__init__", *files]]


def files_of_the_package():
    return [p for p in PACKAGE.rglob("*.py") if EXAMPLES not in p.parents]


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path):
    """Every file of the package that `path` imports, as room.file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pgjax":
            parts = node.module.split(".")[1:]
            names = [alias.name for alias in node.names]
            if len(parts) == 2:
                yield ".".join(parts)
            elif parts:
                yield from (f"{parts[0]}.{n}" if n in FILES[parts[0]] else f"{parts[0]}.__init__" for n in names)
            else:
                yield from (f"the top ({n})" for n in names)
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("pgjax"))


def test_every_file_is_on_the_list_and_imports_point_upward():
    files = [p for p in files_of_the_package() if p != PACKAGE / "__init__.py"]
    assert {name_of(p) for p in files} == set(ORDER)
    for path in files:
        for name in imported(path):
            assert name in ORDER, f"{path} imports {name}"
            facade = name_of(path) == "alignment.__init__" and name.startswith("alignment.")
            assert facade or ORDER.index(name) < ORDER.index(name_of(path)), f"{path} imports {name}, which comes later"


def test_docstrings_give_the_reading_order():
    rooms = re.sub(r"\s+", " ", pgjax.__doc__).partition("in this order: ")[2].partition(". ")[0]
    assert rooms.split(", ") == list(FILES)
    for room, files in FILES.items():
        named = re.findall(r"`(\w+)`", ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())))
        assert [name for name in named if name in files] == files


def test_no_module_has_the_name_of_a_public_function():
    public = {name for name in pgjax.__all__ if not name[0].isupper()} - {"returns", "losses", "alignment", "wrappers"}
    assert not public & {*FILES, *(file for files in FILES.values() for file in files)}


def test_only_gymnax_py_knows_gymnax():
    users = {p.name for p in files_of_the_package() if re.search(r"^\s*(import|from) gymnax", p.read_text(), re.M)}
    assert users <= {"gymnax.py"}


def definitions(node, prefix=""):
    """Every function and class in `node` and its classes, but not in its functions, with its dotted name."""
    for child in ast.iter_child_nodes(node):
        defined = isinstance(child, FUNCTIONS | ast.ClassDef)
        name = f"{prefix}.{child.name}" if defined else prefix
        if defined:
            yield name, child
        if not isinstance(child, FUNCTIONS):
            yield from definitions(child, name)


def test_every_public_definition_has_a_docstring():
    missing = [
        name
        for path in files_of_the_package()
        for name, node in definitions(ast.parse(path.read_text()), name_of(path))
        if not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not missing, f"{len(missing)} without a docstring: {', '.join(sorted(missing))}"


def lines_of_code(function):
    """From `def` to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def test_no_function_is_longer_than_fifty_lines():
    lengths = {
        f"{name_of(path)}, line {node.lineno}: {node.name}": lines_of_code(node)
        for path in files_of_the_package()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, FUNCTIONS)
    }
    assert not {name: length for name, length in lengths.items() if length > 50}


def run_python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_help_and_listings_import_neither_jax_nor_gymnax():
    for arguments in (["--help"], ["envs"], ["algorithms"]):
        heavy = "print([m for m in ('jax', 'gymnax') if m in sys.modules])"
        out = run_python(f"import sys, pgjax.commands.cli; pgjax.commands.cli.main({arguments}); {heavy}")
        assert out.splitlines()[-1] == "[]"
        assert len(out.splitlines()) > 1
