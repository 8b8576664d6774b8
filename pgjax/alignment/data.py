"""Text in, packed arrays out: what language models learn from, as a kind of part for each format of records.

A part is made in two steps, since the tokenizer belongs to the model. `make` reads and checks the records; `packed`
turns them into arrays on the device, some rows to train on and some held out.
"""

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Annotated, Any

import jax
from jaxtyping import Array, Int

from pgjax.alignment.corpora import Format, languages
from pgjax.alignment.packing import CompletionOptions, Options, PromptOptions, StepOptions, TextOptions, pack
from pgjax.alignment.records import IN_CODE, Source, built_in, made, read, shape
from pgjax.alignment.tokenizers import Tokenizer
from pgjax.core.algorithm import DATA_STREAM, Key
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, field, field_types, pytree
from pgjax.core.parts import Description, check_options, dataclass_options, to_json
from pgjax.learning.optimizers import shuffled


@pytree
class BuiltInOptions(Options):
    """Of what a built-in language makes."""

    examples: int = field("examples that the built-in language makes", default=4096, accepts="[1, inf)")


@pytree
class BuiltInTextOptions(TextOptions, BuiltInOptions):
    """Of running text that a built-in language makes."""


@pytree
class BuiltInPromptOptions(PromptOptions, BuiltInOptions):
    """Of prompts that a built-in language makes."""


@pytree
class BuiltInCompletionOptions(CompletionOptions, BuiltInOptions):
    """Of prompts with completions that a built-in language makes."""


@pytree
class BuiltInStepOptions(StepOptions, BuiltInOptions):
    """Of prompts with answers in steps that a built-in language makes."""

    separator: str = field("the text between two steps, a single token", default=";")


@pytree
class Data:
    """data such as `pgjax.alignment.TEXTS.make("corpus.txt")`

    Records of one format, and once `packed` the arrays they give. Compared by what the arrays follow from.
    """

    source: Source
    options: Any
    """One of the classes above."""
    packing: tuple[Tokenizer, int] | None = None
    """The tokenizer and the context of the arrays; None before."""
    train: Annotated[Any, TRACED] = dataclasses.field(default=None, compare=False, repr=False)
    """Rows to learn from, as one of the classes of arrays in `packing`."""
    held_out: Annotated[Any, TRACED] = dataclasses.field(default=None, compare=False, repr=False)
    """Rows that never train, of the same widths; None where none shall be held out."""

    def packed(self, tokenizer: Tokenizer, context: int) -> "Data":
        """A copy with the arrays in it; itself if it has them already.

        A record is held out by a hash of its prompt (its document, for running text) as it stands in the file: records
        with equal prompts fall on one side, in whatever file they are, and further records move none. A single document
        is divided itself: its last tokens are held out.

        Args:
            context: how many tokens a prompt may have together with its completion; a row of running text, too.

        Raises:
            InputError: naming file and line, a text without tokens, or ids that are not in the vocabulary; or that
                nothing is left to train on, or nothing held out where something shall be.
        """
        if self.packing == (tokenizer, context):
            return self
        source, options = self.source, self.options
        records = source.records or built_in(source.name, source.format, options.examples)
        train, held_out, lost = pack(source.format, options, records, tokenizer, context)
        because = f" ({lost})" if lost else ""
        if not len(train[0]):
            raise InputError(f"{source.name} leaves nothing to train on{because}: expected more or shorter examples")
        if options.held_out and not len(held_out[0]):
            raise InputError(
                f"{source.name}: held_out = {options.held_out:g} leaves no held-out example{because}: expected more "
                "examples or held_out=0"
            )
        if lost and source.format != "text":  # of running text, less than two rows
            warnings.warn(f"{source.name}: {lost}", stacklevel=2)
        held_out = held_out if options.held_out else None
        return dataclasses.replace(self, packing=(tokenizer, context), train=train, held_out=held_out)


class DataKind:
    """Records of one format: those of a built-in language by its name, or of a file or folder by its path."""

    def __init__(self, format: Format, of_file: type, of_built_in: type) -> None:
        self.format, self.of_file, self.of_built_in = format, of_file, of_built_in

    @property
    def sentence(self) -> str:
        """The two kinds of names."""
        return f"{', '.join(languages(self.format))}, or a file or folder of JSON lines: {shape(self.format)}"

    def make(self, name: str, sha256: str | None = None, **options: Any) -> Data:
        """The data of that name, not packed yet; of a file, `sha256` is the digest that it must have."""
        checked = self._options(name, self.declaration(name)(), options)
        source = Source(self.format, name) if name in languages(self.format) else read(name, self.format)
        if sha256 not in (None, source.sha256):
            raise InputError(f"data = {name!r} is not the file it was: its digest is {source.sha256}, not {sha256}")
        return Data(source, checked)

    def of(self, records: Iterable[dict[str, Any]], **options: Any) -> Data:
        """Data from records in code, each what a line of a file would hold; not packed yet."""
        return Data(made(records, self.format), self._options(IN_CODE, self.of_file(), options))

    def describe(self, part: Any) -> Description | None:
        """The path, the digest of what lies there and the options; of a built-in language, only the options. None for
        records in code."""
        if not isinstance(part, Data) or part.source.format != self.format or part.source.name == IN_CODE:
            return None
        digest = {"sha256": part.source.sha256} if part.source.sha256 else {}
        options = {f.name: to_json(getattr(part.options, f.name)) for f in dataclasses.fields(part.options)}
        return {"name": part.source.name, "options": digest | options}

    def with_options(self, part: Any, **options: Any) -> Any:
        """The same records, not packed, with other options; of somebody's own data, other fields."""
        if not isinstance(part, Data):
            return dataclasses.replace(part, **options)
        return Data(part.source, self._options(part.source.name, part.options, options))

    def options(self, part: Any) -> dict[str, bool]:
        """Those of the records and of packing; none is a leaf. Of somebody's own data, its fields."""
        return dataclass_options(part.options if isinstance(part, Data) else part)

    def declaration(self, name: str) -> type:
        """The class of the options."""
        return self.of_built_in if name in languages(self.format) else self.of_file

    def _options(self, name: str, known: Any, options: dict[str, Any]) -> Any:
        check_options(f"data {name}", options, field_types(type(known)))
        return dataclasses.replace(known, **options)


TEXTS = DataKind("text", TextOptions, BuiltInTextOptions)
COMPLETIONS = DataKind("completion", CompletionOptions, BuiltInCompletionOptions)
PREFERENCES = DataKind("preference", CompletionOptions, BuiltInCompletionOptions)
LABELS = DataKind("label", CompletionOptions, BuiltInCompletionOptions)
STEPS = DataKind("step", StepOptions, BuiltInStepOptions)
PROMPTS = DataKind("prompt", PromptOptions, BuiltInPromptOptions)


def epoch_rows(key: Key, iteration: Array, num_rows: int, batch_size: int) -> Int[Array, "batch_size"]:
    """The rows that iteration i = 0, 1, ... learns from.

    An epoch is `num_rows // batch_size` iterations through a permutation of its own, so that it has no row twice; which
    rows are left out, where the batch does not divide them, changes from epoch to epoch. A row follows from the key and
    the iteration alone. `batch_size` must not be larger than `num_rows`.
    """
    batches = num_rows // batch_size
    epoch = jax.random.fold_in(jax.random.fold_in(key, DATA_STREAM), iteration // batches)
    order = shuffled(epoch, num_rows)
    return jax.lax.dynamic_slice_in_dim(order, iteration % batches * batch_size, batch_size)
