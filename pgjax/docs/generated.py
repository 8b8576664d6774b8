"""Pages that are made of the code, of results and of notebooks alone, by their path under the site."""

import ast
import base64
import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgjax.docs.excerpts import (
    EXPERIMENTS,
    NOTEBOOKS,
    PACKAGE,
    REPOSITORY,
    RESULTS,
    docstring,
    fenced,
    fields,
    has_repository,
    rows,
)

UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
MODULES = {
    "losses": ("learning.losses", "Losses of samples, KL estimators, and how they become one number."),
    "returns": ("learning.returns", "Returns and advantages, all on one reverse recurrence."),
    "wrappers": ("environments.wrappers", "Environments around environments."),
}
"""Public modules -> where they are, and a sentence."""


def pages() -> Iterator[tuple[str, str | bytes]]:
    """Every generated page and picture."""
    yield from _reference()
    yield from _sources()
    yield "results/index.md", _results_index()
    yield "notebooks/index.md", _notebooks_index()
    if has_repository():
        yield from _results()
        yield from _notebooks()


def exports(path: Path) -> dict[str, str]:
    """Public name -> the module that defines it, as a facade declares them for type checkers."""
    declared: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pgjax"):
            declared |= {alias.name: node.module for alias in node.names if alias.asname == alias.name}
    return declared


def public_names() -> dict[str, str]:
    """`pgjax.NAME` -> the module that defines it; modules are left out."""
    declared = exports(PACKAGE / "__init__.py")
    return {name: module for name, module in declared.items() if name not in (*MODULES, "alignment")}


def _reference() -> Iterator[tuple[str, str]]:
    """A page for each room with public names, one for each public module, and the index of all names."""
    by_room: dict[str, list[str]] = {}
    public = public_names()
    for name, module in public.items():
        by_room.setdefault(module.split(".")[1], []).append(name)
    listed = []
    for room, names in by_room.items():
        entries = [_entry("pgjax", name, public[name]) for name in names]
        yield f"api/{room}.md", "\n\n".join([f"# {room.capitalize()}", *entries])
        listed += [[f"[`pgjax.{x}`]({room}.md#pgjax.{x})", _sentence(public[x], x)] for x in names]
    for name, (module, sentence) in MODULES.items():
        options = "{show_root_heading: false, show_root_toc_entry: false}"
        yield f"api/{name}.md", f"# pgjax.{name}\n\n::: pgjax.{module}\n    options: {options}"
        listed.append([f"[`pgjax.{name}`]({name}.md)", sentence])
    yield "api/alignment.md", _alignment()
    listed.append(["[`pgjax.alignment`](alignment.md)", "Language models: data, generation, a class for each method."])
    head = "# API reference\n\nEverything that `pgjax.__all__` names, and its public modules."
    yield "api/index.md", f"{head}\n\n{rows(['name', 'what it is'], sorted(listed, key=lambda row: row[0].lower()))}"


def _alignment() -> str:
    head = "# pgjax.alignment\n\nLanguage models as policies: `from pgjax import alignment`."
    names = exports(PACKAGE / "alignment" / "__init__.py")
    return "\n\n".join([head, *(_entry("pgjax.alignment", name, module) for name, module in names.items())])


def _entry(facade: str, name: str, module: str) -> str:
    """A name's signature and docstring, and for a class of hyperparameters its fields."""
    text = f"::: {facade}.{name}\n    options: {{toc_label: {name}}}"
    thing = getattr(importlib.import_module(module), name)
    if isinstance(thing, type) and hasattr(thing, "leaf_fields") and dataclasses.fields(thing):
        text += f"\n\nThe fields of `{name}`:\n\n{fields(thing)}"
    return text


def _sentence(module: str, name: str) -> str:
    """The first sentence of what a name says of itself in its file."""
    for node in ast.parse(Path(str(importlib.import_module(module).__file__)).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return (ast.get_docstring(node) or "").split("\n\n")[0].split(". ")[0].replace("\n", " ").rstrip(".:")
    return (
        "An annotation of a dataclass field: a number that is traced, so that it vmaps and changes without recompiling"
    )


def _sources() -> Iterator[tuple[str, str]]:
    """A page for each file of the package, and of the experiments where they are there."""
    files = [*PACKAGE.rglob("*.py"), *(EXPERIMENTS.rglob("*.py") if has_repository() else [])]
    for path in files:
        place = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else REPOSITORY)
        title = path.relative_to(REPOSITORY).as_posix()
        yield f"source/{place.with_suffix('.md').as_posix()}", f"{UNSEARCHED}# {title}\n\n{fenced(path.read_text())}"


def _results_index() -> str:
    head = "# All results\n\nEach is written by a script of `experiments`, with every seed and config in a JSON file."
    if not has_repository():
        return f"{head} They are in the repository, not in the package."
    listed = [
        [f"[{name}]({name}.md)", docstring(script).split("\n\n")[0].replace("\n", " ")] for name, script in _measured()
    ]
    return f"{head}\n\n{rows(['result', 'what it says'], listed)}"


def _measured() -> list[tuple[str, Path]]:
    """Name of every result, and the script that writes it."""
    found = sorted(path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.rglob("*.md"))
    return [(name, EXPERIMENTS / f"{name}.py") for name in found]


def _results() -> Iterator[tuple[str, str | bytes]]:
    """A page for each result: what was asked, by which script, the picture, the table."""
    for name, script in _measured():
        up = "../" * (name.count("/") + 1)
        asked = docstring(script).split("\n\n")[0].replace("\n", " ")
        title = name.rpartition("/")[2].replace("_", " ")
        made = f"Written by [experiments/{name}.py]({up}source/experiments/{name}.md)"
        kept = f"in the repository under `experiments/results/{name}.md`."
        text = [f"# {title[0].upper()}{title[1:]}", asked, f"{made}; {kept}"]
        if (RESULTS / f"{name}.png").is_file():
            text.append(f"![{title}]({name.rpartition('/')[2]}.png)")
        yield f"results/{name}.md", "\n\n".join([*text, (RESULTS / f"{name}.md").read_text()])
    for picture in [*RESULTS.rglob("*.png"), *RESULTS.rglob("*.gif")]:
        yield f"results/{picture.relative_to(RESULTS).as_posix()}", picture.read_bytes()


def _notebooks_index() -> str:
    head = "# Notebooks\n\nHere with the outputs they are stored with; to run them, `pip install 'pgjax[notebooks]'`."
    if not has_repository():
        return f"{head} They are in the repository, not in the package."
    listed = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        title, _, rest = "".join(json.loads(path.read_text())["cells"][0]["source"]).partition("\n\n")
        sentence = rest.split(". ")[0].replace("\n", " ").rstrip(",.$ ")
        listed.append([f"[{title.lstrip('# ')}]({path.stem}.md)", sentence])
    return f"{head}\n\n{rows(['notebook', 'it begins'], listed)}"


def _notebooks() -> Iterator[tuple[str, str | bytes]]:
    """Each notebook as a page with the outputs that it was stored with, and its pictures."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = []
        for i, cell in enumerate(json.loads(path.read_text())["cells"]):
            source = "".join(cell["source"])
            text.append(source if cell["cell_type"] == "markdown" else fenced(source))
            for j, output in enumerate(cell.get("outputs", [])):
                data = output.get("data", {})
                if "image/png" in data:
                    picture = f"{path.stem}-{i}-{j}.png"
                    yield f"notebooks/{picture}", base64.b64decode("".join(data["image/png"]))
                    text.append(f"![output]({picture})")
                elif printed := _printed(output):
                    text.append(printed)
        yield f"notebooks/{path.stem}.md", "\n\n".join(text)


def _printed(output: dict[str, Any]) -> str:
    """An output of text or of HTML."""
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="output">{"".join(data["text/html"])}</div>'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return fenced(text, "{.text .output}") if text.strip() else ""
