"""Text as numbers: UTF-8 bytes, a list of words, or the `tokenizer.json` of a Hugging Face model.

A tokenizer is a kind of part. It is hashable and compared by content, so that it can be a static field of a program.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pgjax.alignment.corpora import CORPORA, corpus
from pgjax.core.errors import InputError, nearest
from pgjax.core.parts import Description, check_options, dataclass_options


@runtime_checkable
class Tokenizer(Protocol):
    """a tokenizer such as `pgjax.alignment.TOKENIZERS.make("bytes")`

    It turns text into token ids and back; hashable, compared by content.
    """

    @property
    def vocab(self) -> int:
        """How many ids there are, special ones included."""
        ...

    @property
    def eos(self) -> int:
        """The id that ends a text."""
        ...

    @property
    def pad(self) -> int:
        """The id that fills rows up; not `eos`, whose meaning it would take away."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special ones around it.

        Raises:
            InputError: the text has no ids.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; `eos` and `pad` are left out."""
        ...


@dataclasses.dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes are their own ids; 256 ends a text and 257 fills up."""

    vocab = 258
    eos = 256
    pad = 257

    def encode(self, text: str) -> list[int]:
        """One id per byte."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that are no UTF-8 become U+FFFD."""
        return bytes(int(i) for i in ids if i not in (self.eos, self.pad)).decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class Words:
    """Words between white space; ids in the order of the list, then `eos` and `pad`.

    Raises:
        InputError: a word that is empty, holds white space, or is there twice.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        for i, word in enumerate(self.words):
            if word.split() != [word] or self._ids[word] != i:
                raise InputError(
                    f"Words.words[{i}] = {word!r} is not accepted: expected a word without white space that is not in "
                    "the list again"
                )

    @property
    def vocab(self) -> int:
        """The words, `eos` and `pad`."""
        return len(self.words) + 2

    @property
    def eos(self) -> int:
        """After the last word."""
        return len(self.words)

    @property
    def pad(self) -> int:
        """After `eos`."""
        return len(self.words) + 1

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """One id per word.

        Raises:
            InputError: a word that is not in the list, with the nearest ones.
        """
        for word in text.split():
            if word not in self._ids:
                raise InputError(f"the word {word!r} is not in the vocabulary: {nearest(word, self.words)}")
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The words, joined by spaces."""
        return " ".join(self.words[int(i)] for i in ids if i not in (self.eos, self.pad))


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A `tokenizer.json`, made by `tokenizer_file`; compared by digest, `eos` and `pad`."""

    path: str = dataclasses.field(compare=False)
    """As it was given: the file, or the folder that holds it."""
    sha256: str
    eos: int
    pad: int
    """Where no padding is defined, the smallest id that is not `eos`: masks say what is real, never ids."""
    vocab: int = dataclasses.field(compare=False)
    """The largest id and 1."""
    tokenizer: Any = dataclasses.field(compare=False, repr=False)
    specials: frozenset[int] = dataclasses.field(compare=False, repr=False)
    """The ids that no text is made of."""

    def encode(self, text: str) -> list[int]:
        """The ids of the text, neither padded nor cut."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Other special tokens are spelled out; so is `pad` if it is a token of texts as well."""
        skipped = {self.eos} | ({self.pad} & self.specials)
        kept = [int(i) for i in ids if int(i) not in skipped]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))


def tokenizer_file(
    path: str, sha256: str | None = None, eos: int | None = None, pad: int | None = None
) -> TokenizerFile:
    """The tokenizer at `path`: a `tokenizer.json` or the folder that holds one.

    Args:
        sha256: the digest that the `tokenizer.json` must have.
        eos: the id that ends a text; by default what the files beside it say (`tokenizer_config.json`,
            `special_tokens_map.json`, `generation_config.json`, `config.json`).
        pad: the id that fills rows up; by default what these files say, else the smallest id that is not `eos`.

    Raises:
        InputError: there is no such file or it has changed, the package is missing, no file defines `eos`, `pad` is
            `eos`, or an id is not in the vocabulary.
    """
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(
            f"tokenizer = {path!r} is not known: expected bytes, {', '.join(CORPORA)}, or a tokenizer.json or a folder "
            "with one"
        )
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise InputError(f"tokenizer = {path!r} is not the file it was: its digest is {digest}, not {sha256}")
    try:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_str(content.decode())
    except ImportError as error:
        raise InputError("a tokenizer.json needs a package: pip install 'pgjax[language]'") from error
    except Exception as error:  # the package raises nothing narrower
        raise InputError(f"tokenizer = {path!r} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocab = max(tokenizer.get_vocab().values()) + 1
    eos = next(_defined("eos", tokenizer, file.parent), None) if eos is None else eos
    if eos is None:
        raise InputError(f"{path}: no file beside it defines the token that ends a text: pass eos, its id")
    if pad is None:
        pad = next(_defined("pad", tokenizer, file.parent), min({0, 1} - {eos}))
    for name, value in {"eos": eos, "pad": pad}.items():
        if type(value) is not int or not 0 <= value < vocab:
            raise InputError(f"{path}: {name} = {value!r} is not accepted: expected an id in [0, {vocab})")
    if pad == eos:
        raise InputError(f"{path}: pad and eos are both {eos}: pass pad, the id of another token")
    specials = frozenset(added["id"] for added in json.loads(content).get("added_tokens", ()))
    return TokenizerFile(path, digest, eos, pad, vocab, tokenizer, specials)


def _defined(name: str, tokenizer: Any, folder: Path) -> Iterator[int]:
    """The ids of the special token `name` that the files of a folder give, the one that counts first."""
    for file in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"):
        path = folder / file
        try:
            values = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from error
        token, ids = values.get(f"{name}_token"), values.get(f"{name}_token_id")
        token = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.token_to_id(token) if isinstance(token, str) else None
        first = ids[0] if isinstance(ids, list) and ids else ids
        yield from (i for i in (found, first) if isinstance(i, int))


class Tokenizers:
    """`bytes`, the words of a built-in language by its name, or a `tokenizer.json` by its path."""

    sentence = f"bytes, {', '.join(CORPORA)}, or the path of a tokenizer.json or of a folder with one"

    def make(self, name: str, **options: Any) -> Any:
        """The tokenizer of that name; a file has the options `sha256`, `eos` and `pad` of `tokenizer_file`."""
        known = () if name in ("bytes", *CORPORA) else ("sha256", "eos", "pad")
        check_options(f"tokenizer {name}", options, known)
        if name == "bytes":
            return Bytes()
        if name in CORPORA:
            return Words(corpus(name).WORDS)
        return tokenizer_file(name, **options)

    def describe(self, part: Any) -> Description | None:
        """Its name; of a file also the digest, `eos` and `pad`. None for other lists of words."""
        if isinstance(part, TokenizerFile):
            return {"name": part.path, "options": {"sha256": part.sha256, "eos": part.eos, "pad": part.pad}}
        for name in ("bytes", *CORPORA):
            if part == self.make(name):
                return {"name": name, "options": {}}
        return None

    def with_options(self, part: Any, **options: Any) -> Any:
        """The same file with another `eos` or `pad`; of somebody's own tokenizer, other fields."""
        described = self.describe(part)
        if described is None:
            return dataclasses.replace(part, **options)
        return self.make(described["name"], **(described["options"] | options))

    def options(self, part: Any) -> dict[str, bool]:
        """`eos` and `pad` of a file; of somebody's own tokenizer, its fields."""
        if isinstance(part, TokenizerFile):
            return {"eos": False, "pad": False}
        return {} if self.describe(part) else dataclass_options(part)

    def declaration(self, name: str) -> type | None:
        """None: what `eos` and `pad` are is known once the file has been read."""
        return None


TOKENIZERS = Tokenizers()
