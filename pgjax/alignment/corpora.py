"""The built-in languages by name: modules with `WORDS`, and `completions` from which records of all formats follow.

A module may make the records of a format itself, in a function named as in `MAKERS`.
"""

import importlib
from types import ModuleType
from typing import Any, Literal, TypeAlias

Format: TypeAlias = Literal["text", "completion", "preference", "label", "prompt", "step"]
CORPORA = ("grammar", "addition", "sums", "countdown", "walks", "constitution")
MAKERS: dict[Format, str] = {
    "text": "texts",
    "completion": "completions",
    "preference": "preferences",
    "label": "labelled",
    "prompt": "prompts",
    "step": "steps",
}
"""Which function of a built-in language makes the records of a format."""


def languages(format: Format) -> tuple[str, ...]:
    """The languages that have records of a format."""
    return ("sums",) if format == "step" else CORPORA


def corpus(name: str) -> ModuleType:
    """The module of that name, one of `CORPORA`; imported when it is used."""
    return importlib.import_module(f"pgjax.alignment.{name}")


def made_by(name: str, format: Format, num: int, seed: int = 0) -> list[dict[str, Any]]:
    """So many records of a language; equal seeds give equal ones.

    What it does not make itself follows from its `completions`, of which a share `wrong` is not right: a text is a
    prompt and its completion, a preference is of the right one over a wrong one, and a label says which it is.
    """
    module = corpus(name)
    if hasattr(module, MAKERS[format]):
        return getattr(module, MAKERS[format])(num, seed)
    right = module.completions(num, seed)
    if format == "text":
        return [{"text": f"{record['prompt']} {record['completion']}"} for record in right]
    if format == "prompt":
        return [{"prompt": record["prompt"]} for record in right]
    if format == "preference":
        both = zip(right, module.completions(num, seed, wrong=1.0), strict=True)
        return [{"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]} for a, b in both]
    both = zip(right, module.completions(num, seed, wrong=0.5), strict=True)
    return [{**b, "label": a["completion"] == b["completion"]} for a, b in both]
