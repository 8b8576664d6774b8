"""Records as arrays: tokens of fixed width with masks, some rows to train on and some held out.

Rows are filled on the host with NumPy and put on the device once.
"""

import hashlib
import json
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment.records import TEXTS_OF, Format, Record
from pgjax.alignment.tokenizers import Tokenizer
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import check_fields, field, pytree


@pytree
class Options:
    """What all data has."""

    held_out: float = field("fraction that is held out, by prompt", default=0.1, accepts="[0, 1)")

    def __post_init__(self) -> None:
        check_fields(self)


@pytree
class TextOptions(Options):
    """Of running text."""

    length: int = field("tokens of a row of running text", default=128, accepts="[2, inf)")


@pytree
class PromptOptions(Options):
    """Of prompts."""

    max_prompt: int = field("longest prompt in tokens", default=64, accepts="[1, inf)")
    too_long: Literal["drop", "cut"] = field(
        "what is too long is dropped, or cut: prompts on the left, completions on the right", default="drop"
    )


@pytree
class CompletionOptions(PromptOptions):
    """Of prompts with completions."""

    max_completion: int = field("longest completion in tokens, EOS included", default=64, accepts="[1, inf)")


@pytree
class StepOptions(CompletionOptions):
    """Of prompts with answers in steps."""

    separator: str = field("the text between two steps, a single token", default="\n")


class Texts(NamedTuple):
    """Documents, each ended by EOS, joined and cut into rows."""

    tokens: Int[Array, "N length"]


class Prompts(NamedTuple):
    """Left-padded, so that all end where an answer begins. An empty prompt is a single EOS."""

    prompt: Int[Array, "N P"]
    prompt_mask: Bool[Array, "N P"]


class Completions(NamedTuple):
    """Prompts as in `Prompts`; completions right-padded. The mask includes their EOS, which they have unless cut."""

    prompt: Int[Array, "N P"]
    prompt_mask: Bool[Array, "N P"]
    completion: Int[Array, "N T"]
    completion_mask: Bool[Array, "N T"]


class Preferences(NamedTuple):
    """Two completions of each prompt, as in `Completions`, and by how much the chosen one is better; 0 if not said."""

    prompt: Int[Array, "N P"]
    prompt_mask: Bool[Array, "N P"]
    chosen: Int[Array, "N T"]
    chosen_mask: Bool[Array, "N T"]
    rejected: Int[Array, "N T"]
    rejected_mask: Bool[Array, "N T"]
    margin: Float[Array, "N"]


class Labelled(NamedTuple):
    """As `Completions`, and whether each is a good one."""

    prompt: Int[Array, "N P"]
    prompt_mask: Bool[Array, "N P"]
    completion: Int[Array, "N T"]
    completion_mask: Bool[Array, "N T"]
    label: Bool[Array, "N"]


class Steps(NamedTuple):
    """As `Completions`, with a separator after each step but the last, which ends at EOS."""

    prompt: Int[Array, "N P"]
    prompt_mask: Bool[Array, "N P"]
    completion: Int[Array, "N T"]
    completion_mask: Bool[Array, "N T"]
    ends: Bool[Array, "N T"]
    """Where a step ends."""
    label: Bool[Array, "N T"]
    """Whether the step that ends there is right."""


ARRAYS: dict[Format, Any] = {
    "completion": Completions,
    "preference": Preferences,
    "label": Labelled,
    "prompt": Prompts,
    "step": Steps,
}


PLURAL = {
    "text": "documents",
    "completion": "examples",
    "preference": "pairs",
    "label": "examples",
    "prompt": "prompts",
    "step": "examples",
}


class Packed(NamedTuple):
    """What became of all records."""

    train: Any
    """One of the classes above."""
    held_out: Any
    """The same with other rows, of the same widths."""
    lost: str
    """What was dropped or cut, as a sentence; empty if nothing was."""


def pack(format: Format, options: Any, records: tuple[Record, ...], tokenizer: Tokenizer, context: int) -> Packed:
    """The arrays of records under the options of their format, for a model that sees `context` tokens.

    Raises:
        InputError: a text without tokens, ids that are not in the vocabulary, or a context that is too short.
    """
    held = np.array([_is_held_out(record.values[TEXTS_OF[format][0]], options.held_out) for record in records])
    if format == "text":
        return _pack_texts(options, records, held, tokenizer, context)
    return _pack_prompts(format, options, records, held, tokenizer, context)


def _is_held_out(value: str | list[int], fraction: float) -> bool:
    digest = hashlib.sha256(json.dumps(value).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _ids(tokenizer: Tokenizer, record: Record, name: str) -> list[int]:
    """The tokens of one text of a record."""
    ids = record.values[name]
    if isinstance(ids, str):
        try:
            ids = tokenizer.encode(ids)
        except InputError as error:
            raise InputError(f"{record.where}: {error}") from error
    for i in ids:
        if not 0 <= i < tokenizer.vocab:
            raise InputError(f"{record.where}: {name!r} has the id {i}: expected ids in [0, {tokenizer.vocab})")
    if not ids and name != "prompt":
        raise InputError(f"{record.where}: {name!r} has no tokens: expected at least one")
    return ids


def _pack_texts(
    options: TextOptions, records: tuple[Record, ...], held: np.ndarray, tokenizer: Tokenizer, context: int
) -> Packed:
    length = options.length
    if length > context:
        raise InputError(f"length = {length} is not accepted: expected at most the model's context, {context}")
    documents = [np.array([*_ids(tokenizer, record, "text"), tokenizer.eos], np.int32) for record in records]
    if len(documents) == 1:
        last = round(options.held_out * documents[0].size)
        documents, held = np.split(documents[0], [documents[0].size - last]), np.array([False, True])

    def rows(side: bool) -> Texts:
        stream = np.concatenate([np.zeros(0, np.int32), *(documents[i] for i in np.flatnonzero(held == side))])
        return Texts(jnp.asarray(stream[: stream.size // length * length].reshape(-1, length)))

    train, held_out = rows(False), rows(True)
    total = sum(document.size for document in documents)
    dropped = total - train.tokens.size - held_out.tokens.size
    lost = f"{dropped:,} of {total:,} tokens do not fill a row of length = {length} and were dropped"
    return Packed(train, held_out, lost if dropped else "")


class _Row(NamedTuple):
    """One record in tokens, the completions with their EOS."""

    prompt: list[int]
    completions: list[list[int]]

    def cut(self, max_prompt: int, max_completion: int, context: int) -> "_Row":
        """The prompt's last and the completions' first tokens; where the context is short, the prompt gives way."""
        longest = min(max_completion, max(map(len, self.completions), default=0))
        kept = min(max_prompt, len(self.prompt), max(1, context - longest))
        return _Row(self.prompt[-kept:], [ids[: min(max_completion, context - kept)] for ids in self.completions])


def _pack_prompts(
    format: Format,
    options: PromptOptions,
    records: tuple[Record, ...],
    held: np.ndarray,
    tokenizer: Tokenizer,
    context: int,
) -> Packed:
    limits = options.max_prompt, getattr(options, "max_completion", 0), context
    separator = _separator(tokenizer, options.separator) if isinstance(options, StepOptions) else None
    whole = [_row(tokenizer, record, format, separator) for record in records]
    answers = len(whole[0].completions)
    if context < min(2, 1 + answers):
        raise InputError(f"context = {context} is not accepted: expected room for a token of each text")
    cut = [row.cut(*limits) for row in whole]
    too_long = np.array([one != other for one, other in zip(whole, cut, strict=True)])
    kept = np.flatnonzero(~too_long | (options.too_long == "cut"))
    P = max((len(cut[i].prompt) for i in kept), default=0)
    T = max((len(ids) for i in kept for ids in cut[i].completions), default=0)

    def arrays(side: bool) -> Any:
        rows = [i for i in kept if held[i] == side]
        columns = _padded([cut[i].prompt for i in rows], P, tokenizer.pad, left=True)
        for nth in range(answers):
            columns += _padded([cut[i].completions[nth] for i in rows], T, tokenizer.pad, left=False)
        if format == "preference":
            columns += (np.array([records[i].values.get("margin", 0.0) for i in rows], np.float32),)
        if format == "label":
            columns += (np.array([records[i].values["label"] for i in rows], bool),)
        if format == "step":
            tokens, mask = columns[-2:]
            ends = mask & ((tokens == separator) | (tokens == tokenizer.eos))
            columns += (ends, _labels_at(ends, [records[i].values["labels"] for i in rows]))
        return ARRAYS[format](*map(jnp.asarray, columns))

    longest = f"max_prompt = {limits[0]}" + (f" or max_completion = {limits[1]}" if limits[1] else "")
    lost = (
        f"{too_long.sum():,} of {len(whole):,} {PLURAL[format]} are longer than {longest} tokens, or than context = "
        f"{context} in all, and were {'cut' if options.too_long == 'cut' else 'dropped'}"
    )
    return Packed(arrays(False), arrays(True), lost if too_long.any() else "")


def _separator(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise InputError(f"separator = {text!r} is not accepted: expected a single token, and it is {len(ids)}")
    return ids[0]


def _row(tokenizer: Tokenizer, record: Record, format: Format, separator: int | None) -> _Row:
    prompt, *completions = (_ids(tokenizer, record, name) for name in TEXTS_OF[format])
    if separator is not None:
        completions = [_joined(tokenizer, record, separator)]
    return _Row(prompt or [tokenizer.eos], [[*ids, tokenizer.eos] for ids in completions])


def _joined(tokenizer: Tokenizer, record: Record, separator: int) -> list[int]:
    """The steps of a record with the separator between them."""
    joined: list[int] = []
    for text in record.values["completions"]:
        ids = _ids(tokenizer, record._replace(values={"completions": text}), "completions")
        if separator in ids:
            raise InputError(f"{record.where}: the step {text!r} has the separator in it: expected steps without it")
        joined += [separator, *ids] if joined else ids
    return joined


def _labels_at(ends: np.ndarray, labels: list[list[bool]]) -> np.ndarray:
    """The labels of each row's steps where they end, those of steps that were cut left out."""
    found = np.zeros_like(ends)
    for row, at, of_row in zip(found, ends, labels, strict=True):
        row[at] = of_row[: at.sum()]
    return found


def _padded(texts: list[list[int]], width: int, pad: int, left: bool) -> tuple[np.ndarray, ...]:
    """Tokens and mask, `[texts, width]`."""
    tokens, mask = np.full((len(texts), width), pad, np.int32), np.zeros((len(texts), width), bool)
    for i, ids in enumerate(texts):
        slots = slice(width - len(ids), width) if left else slice(0, len(ids))
        tokens[i, slots], mask[i, slots] = ids, True
    return tokens, mask
