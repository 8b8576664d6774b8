"""The built-in languages by name: modules with `WORDS`, and a function that makes the records of each format."""

import importlib
from types import ModuleType

CORPORA = ("grammar", "addition")


def corpus(name: str) -> ModuleType:
    """The module of that name, one of `CORPORA`; imported when it is used."""
    return importlib.import_module(f"pgjax.alignment.{name}")
