"""Language models as a kind of part: network, tokenizer and parameters, from a run or a Hugging Face folder."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment.tokenizers import TOKENIZERS, Tokenizer
from pgjax.core.algorithm import Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, check_fields, field, pytree
from pgjax.core.parts import Description, dataclass_options, to_json
from pgjax.networks.pretrained import load_pretrained
from pgjax.networks.transformer import Transformer
from pgjax.running.directory import read_json
from pgjax.running.shell import load


class Prompt(NamedTuple):
    """What completions begin from, padded on the left."""

    tokens: Int[Array, "B P"]
    mask: Bool[Array, "B P"]
    """Which of them are real."""


@pytree
class ModelOptions:
    """How a model is read."""

    checkpoint: Literal["newest", "best"] = field("which state of a run", default="newest")
    member: int = field("which member of a run with several seeds", default=0, accepts="[0, inf)")
    pad: int = field("padding token of a Hugging Face model; -1 as its files say", default=-1, accepts="[-1, inf)")
    dtype: Literal["float32", "bfloat16"] = field("precision of activations and products", default="float32")
    param_dtype: Literal["float32", "bfloat16"] = field("precision parameters are kept in", default="float32")
    remat: bool = field("compute each block again in the backward pass instead of keeping it", default=False)

    def __post_init__(self) -> None:
        check_fields(self)


@pytree
class LanguageModel:
    """a language model such as `pgjax.alignment.language_model("runs/lm")` gives

    The parameters are leaves, which all members of a sweep share.
    """

    network: Transformer
    tokenizer: Tokenizer
    params: Annotated[Params, TRACED]
    path: str = ""
    """Of the run or the folder; empty for a model made in code."""
    sha256: str = ""
    options: ModelOptions = dataclasses.field(default_factory=ModelOptions)

    def __post_init__(self) -> None:
        if self.tokenizer.vocab > self.network.vocab:
            raise InputError(
                f"tokenizer with {self.tokenizer.vocab} ids is not accepted: the model has vocab = {self.network.vocab}"
            )


class LanguageModels:
    """Runs and Hugging Face folders by their path."""

    sentence = "a run of a language model, or a Hugging Face folder, by its path"

    def make(self, name: str, sha256: str | None = None, **options: Any) -> LanguageModel:
        """The model that lies there; `sha256` is the digest its parameters must have.

        Raises:
            InputError: there is no model, it is not the one it was, or an option is not accepted.
        """
        chosen = ModelOptions(**options)
        network, tokenizer, params = _from_run(name, chosen) if is_run(name) else _from_folder(name, chosen)
        network = dataclasses.replace(network, dtype=chosen.dtype, param_dtype=chosen.param_dtype, remat=chosen.remat)
        params = jax.tree.map(lambda x: jnp.asarray(x, chosen.param_dtype), params)
        digest = digest_of(params)
        if sha256 not in (None, digest):
            raise InputError(f"model = {name!r} is not the one it was: its digest is {digest}, not {sha256}")
        return LanguageModel(network, tokenizer, params, name, digest, chosen)

    def describe(self, part: Any) -> Description | None:
        """The path, the digest of the parameters, and how they are read; None for a model made in code."""
        if not isinstance(part, LanguageModel) or not part.path:
            return None
        options = {f.name: to_json(getattr(part.options, f.name)) for f in dataclasses.fields(part.options)}
        return {"name": part.path, "options": {"sha256": part.sha256} | options}

    def with_options(self, part: Any, **options: Any) -> Any:
        """The same model read in another way."""
        if not isinstance(part, LanguageModel) or not part.path:
            return dataclasses.replace(part, **options)
        known = {f.name: getattr(part.options, f.name) for f in dataclasses.fields(part.options)}
        return self.make(part.path, **(known | options))

    def options(self, part: Any) -> dict[str, bool]:
        """How it is read; none is a leaf."""
        return dataclass_options(part.options) if isinstance(part, LanguageModel) else dataclass_options(part)

    def declaration(self, name: str) -> type:
        """`ModelOptions`."""
        return ModelOptions


LANGUAGE_MODELS = LanguageModels()


def language_model(path: str | Path, **options: Any) -> LanguageModel:
    """The language model of a run, or of a Hugging Face folder (GPT-2, Llama, Qwen2, Qwen3).

    Args:
        options: fields of `ModelOptions`, and `sha256`.

    Raises:
        InputError: as `LanguageModels.make` does.
    """
    return LANGUAGE_MODELS.make(str(path), **options)


def is_run(path: str) -> bool:
    """Whether a run of ours is kept there.

    Raises:
        InputError: there is neither a run nor a model.
    """
    config = Path(path) / "config.json"
    if not config.exists():
        raise InputError(f"{path} holds neither a run nor a Hugging Face model: it has no config.json")
    return "algorithm" in read_json(config)


def digest_of(tree: Any) -> str:
    """SHA-256 of the bytes of all arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def member_state(path: str, options: Any) -> tuple[Any, Any]:
    """The algorithm of a run, and the state that the options choose.

    Raises:
        InputError: there is no such member, or no run that can be read.
    """
    result = load(path, options.checkpoint)
    members = result.state.iteration.shape
    if not members:
        return result.algorithm, result.state
    if options.member >= members[0]:
        raise InputError(f"member = {options.member} is not accepted: {path} has {members[0]} members")
    return result.algorithm, result.member(options.member).state


def _from_run(path: str, options: ModelOptions) -> tuple[Transformer, Tokenizer, Params]:
    algorithm, state = member_state(path, options)
    if not hasattr(algorithm, "language_model"):
        raise InputError(f"model = {path!r} is not accepted: {type(algorithm).__name__} trains no language model")
    model = algorithm.language_model(state)
    return model.network, model.tokenizer, model.params


def _from_folder(path: str, options: ModelOptions) -> tuple[Transformer, Tokenizer, Params]:
    network, params = load_pretrained(path, options.dtype, options.param_dtype)
    pad = {} if options.pad < 0 else {"pad": options.pad}
    return network, TOKENIZERS.make(path, **pad), params


def completion_hidden(
    network: Transformer, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]
) -> Float[Array, "B T width"]:
    """The normalised stream that each token of the completions was predicted from.

    Completions are padded on the right, which nothing before it can see.
    """
    before = jnp.concatenate([prompt.tokens, tokens[:, :-1]], axis=1)
    real = jnp.concatenate([prompt.mask, jnp.ones((tokens.shape[0], tokens.shape[1] - 1), bool)], axis=1)
    return network.hidden(params, before, real)[:, prompt.tokens.shape[1] - 1 :]


def completion_logits(
    network: Transformer, params: Params, prompt: Prompt, tokens: Int[Array, "B T"]
) -> Float[Array, "B T vocab"]:
    """The logits that each token of the completions was predicted by: one teacher-forced pass."""
    return network.unembed(params, completion_hidden(network, params, prompt, tokens))
