"""What a page takes from the code, from presets and from results, so that nothing is written twice.

A page asks by a comment that stands alone in a line, such as `<!-- hyperparameters ppo -->`; `EXCERPTS` are the words.
Results, experiments and notebooks are in the repository and not in the package: without a repository, a page says so.
"""

import ast
import dataclasses
import functools
import itertools
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.core.errors import InputError, nearest
from pgjax.core.hyperparameters import Scalar, field_types
from pgjax.running.presets import table

PACKAGE = Path(__file__).parents[1]
REPOSITORY = PACKAGE.parent
EXPERIMENTS = REPOSITORY / "experiments"
RESULTS = EXPERIMENTS / "results"
NOTEBOOKS = REPOSITORY / "notebooks"
COMMENT = re.compile(r"^<!-- ([a-z]+)(?: (.+?))? -->$", re.MULTILINE)


def with_excerpts(markdown: str) -> str:
    """The page with what its comments ask for in their places.

    Raises:
        InputError: a comment asks for something that there is not.
    """

    def excerpt(found: re.Match[str]) -> str:
        if found[1] not in EXCERPTS:
            raise InputError(f"<!-- {found[1]} --> is not known: {nearest(found[1], EXCERPTS)}")
        return EXCERPTS[found[1]](found[2] or "")

    return COMMENT.sub(excerpt, markdown)


def rows(header: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def fenced(text: str, language: str = "python") -> str:
    """A block of code, whatever is in it."""
    return f"``````{language}\n{text.rstrip()}\n``````"


def code(path: str) -> str:
    """A file of the package as it is."""
    return fenced((PACKAGE / path).read_text())


def constant(place: str) -> str:
    """The text that a file of the package gives a name: `<!-- constant commands/cli.py USAGE -->`."""
    path, name = place.split()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return fenced(ast.literal_eval(node.value), "text")
    raise InputError(f"{path} has no constant {name}")


def algorithms(_: str) -> str:
    """All of them, each with its sentence, its class and a link to its page."""
    body = [
        [f"[{name}]({name}.md)", f"`{module.partition('.')[0].replace('algorithms', 'pgjax')}.{cls}`", sentence]
        for name, (module, cls, sentence) in ALGORITHMS.items()
    ]
    return rows(["name", "class", "what it is"], body)


def hyperparameters(name: str) -> str:
    """The fields of an algorithm: those it declares first, then those of its bases."""
    return fields(algorithm_class(name))


def fields(cls: Any) -> str:
    """A dataclass's fields with sentence, default and what is accepted, its own before those of its bases."""
    declared = {f.name: f for f in dataclasses.fields(cls)}
    order = dict.fromkeys(name for base in cls.__mro__ for name in vars(base).get("__annotations__", {}))
    hints = field_types(cls)
    body = [
        [f"`{name}`", _sentence(declared[name]), _default(declared[name]), _accepted(declared[name], hints[name])]
        for name in order
        if name in declared
    ]
    return rows(["field", "what it is", "default", "accepted"], body)


def _sentence(f: Any) -> str:
    return str(f.metadata.get("help", ""))


def _default(f: Any) -> str:
    return "required" if f.default is dataclasses.MISSING else f"`{f.default!r}`"


def _accepted(f: Any, hint: Any) -> str:
    """As `check_fields` decides it; numbers that are traced are marked."""
    interval, part = f.metadata.get("accepts"), f.metadata.get("part")
    if part:
        return f"a part: {part.sentence}"
    within = f" in {interval}" if interval else ""
    if hint == Scalar:
        return f"number{within}, traced"
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{choice!r}`" for choice in typing.get_args(hint))
    if hint is bool:
        return "`True`, `False`"
    if typing.get_origin(hint) is tuple:
        return f"whole numbers{within}"
    return {int: "whole number", float: "number"}.get(hint, str(getattr(hint, "__name__", hint))) + within


def presets(name: str) -> str:
    """What an algorithm has tuned settings for."""
    subjects = table().get(name, {})
    if not subjects:
        return "There is no tuned preset: the defaults are meant for the built-in languages."
    listed = ", ".join(f"`{subject}`" for subject in subjects)
    return f"Tuned presets (`pgjax.tuned`, and the command line by itself): {listed}."


def has_repository() -> bool:
    """Whether results, experiments and notebooks lie beside the package."""
    return RESULTS.is_dir()


def result(place: str) -> str:
    """What a result says: `NAME` is all of it, `NAME: table` its first table, `NAME: CELL; CELL` the rows of that table
    with one of these cells."""
    name, _, cells = place.partition(": ")
    path = RESULTS / f"{name}.md"
    if not path.is_file():
        where = "has not been measured yet" if has_repository() else "is in the repository, not in the package"
        return f"!!! note\n    `experiments/results/{name}.md` {where}."
    text = path.read_text().strip()
    if not cells:
        return text
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    body = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    wanted = cells.split("; ")
    found = [line for line in body if cells == "table" or set(wanted) & set(map(str.strip, line.split("|")))]
    if not found:
        raise InputError(f"experiments/results/{name}.md has no row with a cell {' or '.join(wanted)}")
    return "\n".join([*lines[start : start + 2], *found])


def errors(_: str) -> str:
    """Every `InputError` of the package by file, with `…` for what depends on the input."""
    blocks = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if messages := list(dict.fromkeys(messages_of(path))):
            listed = "\n".join(f"    - `{message}`" for message in messages)
            blocks.append(f'??? note "{path.relative_to(PACKAGE)} ({len(messages)})"\n{listed}')
    return "\n\n".join(blocks)


def messages_of(path: Path) -> Iterator[str]:
    """What a file raises as `InputError`, in the order of its lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "InputError" and node.args:
            text = _template(node.args[0])
            if re.search(r"\w", text):
                yield text


def _template(node: ast.expr) -> str:
    """A message as far as the source says it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return "…"


@functools.cache
def docstring(path: Path) -> str:
    """What a script says of itself."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


EXCERPTS: dict[str, Callable[[str], str]] = {
    "algorithms": algorithms,
    "code": code,
    "constant": constant,
    "errors": errors,
    "hyperparameters": hyperparameters,
    "presets": presets,
    "result": result,
}
