"""Files of JSON lines, records made in code, and the built-in languages: text, checked, and not yet in tokens.

One line is one record. Texts are strings or lists of token ids, and what else a line holds is ignored:

- `text`: {"text"}; for it also plain text files, each a single document;
- `completion`: {"prompt", "completion"};
- `preference`: {"prompt", "chosen", "rejected"}, and optionally a number "margin", by how much the chosen is better;
- `label`: {"prompt", "completion", "label"}, the label true or false;
- `prompt`: {"prompt"};
- `step`: {"prompt", "completions", "labels"}, the steps of one answer, and of each whether it is right.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NamedTuple

import numpy as np

from pgjax.alignment.corpora import Format, languages, made_by
from pgjax.core.errors import InputError

TEXTS_OF: dict[Format, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "label": ("prompt", "completion"),
    "prompt": ("prompt",),
    "step": ("prompt",),
}
"""What is a text in a record. The first decides whether the record is held out."""

MORE_OF: dict[Format, tuple[str, ...]] = {
    "label": ("label",),
    "preference": ("margin",),
    "step": ("completions", "labels"),
}
"""What else is read of it."""

IN_CODE = "records in code"
"""The name of what no file holds."""

LARGEST = float(np.finfo(np.float32).max)
"""Of a margin."""


class Record(NamedTuple):
    """One line of a file, checked."""

    where: str
    """The file and the line, for messages."""
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where records come from, and the records; compared by digest."""

    format: Format
    name: str
    """The path as it was given, the name of a built-in language, or `IN_CODE`."""
    sha256: str | None = None
    """Of the file; of a folder, of the digests and names of its files; of records in code. None for built-in
    languages."""
    records: tuple[Record, ...] = dataclasses.field(default=(), compare=False, repr=False)


def read(path: str, format: Format) -> Source:
    """The records of a file, or of all `*.jsonl` (for `text` also `*.txt`) of a folder in the order of their names.

    Blank lines are skipped. A file of `text` that is not called `*.jsonl` is a single document.

    Raises:
        InputError: naming file and line: there is no such file, nothing is in it, or a line is not what it should be.
    """
    folder = Path(path)
    wanted = (".jsonl", ".txt") if format == "text" else (".jsonl",)
    files = sorted(p for p in folder.iterdir() if p.suffix in wanted) if folder.is_dir() else [folder]
    if not files or not all(file.is_file() for file in files):
        raise InputError(
            f"data = {path!r} is not known: expected {', '.join(languages(format))}, a file of JSON lines, or a folder "
            f"with such files (*{', *'.join(wanted)})"
        )
    contents = {file: file.read_bytes() for file in files}
    digests = {file.name: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    listed = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    digest = hashlib.sha256(listed.encode()).hexdigest() if folder.is_dir() else digests[folder.name]
    records = [record for file, content in contents.items() for record in _records(file, content, format)]
    return Source(format, path, digest, tuple(records))


def _records(file: Path, content: bytes, format: Format) -> list[Record]:
    plain = format == "text" and file.suffix != ".jsonl"
    if not content.strip():
        raise InputError(f"{file} is empty: expected " + ("text" if plain else f"{shape(format)} in each line"))
    if plain:
        try:
            return [Record(str(file), {"text": content.decode()})]
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8: {error}") from error
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}): expected {shape(format)}") from error
        found.append(_checked(where, values, format))
    return found


def made(records: Iterable[dict[str, Any]], format: Format) -> Source:
    """Records that were made in code, each what a line would hold.

    Raises:
        InputError: there are none, or one is not what it should be.
    """
    checked = tuple(_checked(f"{IN_CODE}, record {i}", values, format) for i, values in enumerate(records, 1))
    if not checked:
        raise InputError(f"{IN_CODE}: there are none; expected at least one {shape(format)}")
    names = (*TEXTS_OF[format], *MORE_OF.get(format, ()))
    content = json.dumps([[record.values.get(name) for name in names] for record in checked])
    return Source(format, IN_CODE, hashlib.sha256(content.encode()).hexdigest(), checked)


def _checked(where: str, values: Any, format: Format) -> Record:
    problem = _problem(values, format)
    if problem:
        raise InputError(f"{where}: {problem}; expected {shape(format)}")
    return Record(where, values)


def shape(format: Format) -> str:
    """How a line looks, for messages."""
    more = {
        "label": ', "label": true or false',
        "step": ', "completions": ["...", ...], "labels": [true or false, ...]',
    }
    return "{" + ", ".join(f'"{name}": "..."' for name in TEXTS_OF[format]) + more.get(format, "") + "}"


def _problem(values: Any, format: Format) -> str | None:
    """What is wrong with a line, if anything is."""
    if not isinstance(values, dict):
        return f"{shortened(values)} is no JSON object"
    names = TEXTS_OF[format]
    for name in (*names, "label") if format == "label" else names:
        if name not in values:
            return f"{name!r} is missing"
    for name in names:
        if not _is_text(values[name]):
            return f"{name!r} is {shortened(values[name])}, neither a text nor a list of token ids"
        if not values[name] and name != "prompt":
            return f"{name!r} is empty"
    if format == "label" and not isinstance(values["label"], bool):
        return f"'label' is {shortened(values['label'])}"
    if format == "step":
        return _problem_of_steps(values)
    if format == "preference":
        if values["chosen"] == values["rejected"]:
            return "'chosen' and 'rejected' are equal"
        margin = values.get("margin", 0)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= LARGEST:
            return f"'margin' is {shortened(margin)} and no finite number"
    return None


def _problem_of_steps(values: dict[str, Any]) -> str | None:
    for name, is_right in (("completions", lambda x: x and _is_text(x)), ("labels", lambda x: isinstance(x, bool))):
        if name not in values:
            return f"{name!r} is missing"
        if not isinstance(values[name], list) or not values[name] or not all(map(is_right, values[name])):
            return f"{name!r} is {shortened(values[name])}"
    steps, labels = len(values["completions"]), len(values["labels"])
    return f"there are {labels} labels of {steps} steps" if steps != labels else None


def _is_text(value: Any) -> bool:
    """A string with a UTF-8 form, or token ids."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, list) and all(type(i) is int for i in value)


def built_in(name: str, format: Format, num: int) -> tuple[Record, ...]:
    """So many records that a built-in language makes, always the same."""
    return tuple(Record(f"{name}, example {i}", values) for i, values in enumerate(made_by(name, format, num), 1))
