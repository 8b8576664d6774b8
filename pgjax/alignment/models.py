"""Language models as a kind of part: network, tokenizer and parameters, from a run or a Hugging Face folder."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from pgjax.algorithms import algorithm_class
from pgjax.alignment.packing import Preferences
from pgjax.alignment.tokenizers import TOKENIZERS, Tokenizer
from pgjax.core.algorithm import Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, check_fields, field, field_types, pytree
from pgjax.core.parts import Dataclasses, Description, Kind, check_options, dataclass_options, to_json
from pgjax.networks.pretrained import load_pretrained
from pgjax.networks.transformer import Transformer
from pgjax.running.checkpoint import load_under
from pgjax.running.directory import holds_sweep, read_config, read_json

TEXT_NETWORKS = Dataclasses("network", {"transformer": Transformer})
KINDS: dict[str, Kind] = {"network": TEXT_NETWORKS, "tokenizer": TOKENIZERS}


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
    params: Annotated[Params, TRACED] = dataclasses.field(repr=False)
    path: str = ""
    """Of the run or the folder; empty for a model made in code."""
    sha256: str = ""
    options: ModelOptions = dataclasses.field(default_factory=ModelOptions)

    def __post_init__(self) -> None:
        if self.tokenizer.vocab > self.network.vocab:
            raise InputError(
                f"tokenizer with {self.tokenizer.vocab} ids is not accepted: the model has vocab = {self.network.vocab}"
            )

    def with_params(self, params: Params) -> "LanguageModel":
        """The same kind of model with parameters of its own, which lie nowhere."""
        return dataclasses.replace(self, params=params, path="", sha256="")


class LanguageModels:
    """Runs and Hugging Face folders by their path."""

    sentence = "a run of a language model, or a Hugging Face folder, by its path"

    def make(self, name: str, sha256: str | None = None, of: Any = None, **options: Any) -> LanguageModel:
        """The model that lies there; `sha256` is the digest its parameters must have, and `of` says nothing new.

        Raises:
            InputError: there is no model, it is not the one it was, or an option is not accepted.
        """
        check_options(f"model {name}", options, field_types(ModelOptions))
        chosen = ModelOptions(**options)
        network, tokenizer, params = _from_run(name, chosen) if is_run(name) else _from_folder(name, chosen)
        precision: Any = {"dtype": chosen.dtype, "param_dtype": chosen.param_dtype, "remat": chosen.remat}
        params = jax.tree.map(lambda x: jnp.asarray(x, chosen.param_dtype), params)
        digest = digest_of(params)
        check_digest("model", name, digest, sha256)
        return LanguageModel(dataclasses.replace(network, **precision), tokenizer, params, name, digest, chosen)

    def describe(self, part: Any) -> Description | None:
        """The path, the digest of the parameters, how they are read, and `of` what kind the model is, so that a run
        which started from it can be read without it. None for a model made in code."""
        if not isinstance(part, LanguageModel) or not part.path:
            return None
        options = {f.name: to_json(getattr(part.options, f.name)) for f in dataclasses.fields(part.options)}
        kind = {"network": TEXT_NETWORKS.describe(part.network), "tokenizer": TOKENIZERS.describe(part.tokenizer)}
        return {"name": part.path, "options": {"sha256": part.sha256, "of": kind} | options}

    def with_options(self, part: Any, **options: Any) -> Any:
        """The same model read in another way."""
        known = {f.name: getattr(part.options, f.name) for f in dataclasses.fields(part.options)}
        return self.make(part.path, **(known | options))

    def options(self, part: Any) -> dict[str, bool]:
        """How it is read; none is a leaf. A model made in code has none."""
        return dataclass_options(part.options) if part.path else {}

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
    if holds_sweep(Path(path)):
        raise InputError(f"{path} holds a sweep: save one of its members as a run, with save_member")
    if not config.exists():
        raise InputError(f"{path} holds neither a run nor a Hugging Face model: it has no config.json")
    return "algorithm" in read_json(config)


def digest_of(tree: Any) -> str:
    """SHA-256 of the bytes of all arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def check_digest(label: str, path: str, digest: str, expected: str | None) -> None:
    """Refuse what is not what it was.

    Raises:
        InputError: with both digests.
    """
    if expected not in (None, digest):
        raise InputError(f"{label} = {path!r} is not the one it was: its digest is {digest}, not {expected}")


def kind_of_model(config: dict[str, Any], path: str) -> tuple[Transformer, Tokenizer]:
    """Network and tokenizer of a run, from its config.

    Raises:
        InputError: it trains no language model, or one of somebody's own.
    """
    parts = config["parts"]
    described = parts if "tokenizer" in parts else parts.get("model", {}).get("options", {}).get("of", {})
    known = all("options" in (described.get(name) or {}) for name in KINDS)
    if not isinstance(config["algorithm"], str) or not known:
        raise InputError(f"model = {path!r} is not accepted: the run there trains no language model that we know")
    made = [kind.make(described[name]["name"], **described[name]["options"]) for name, kind in KINDS.items()]
    return made[0], made[1]


def nested(leaves: dict[str, Any], config: dict[str, Any], member: int | None) -> Params:
    """Leaves by their dotted path as nested dicts; of several members, the one that is asked for, or all.

    Raises:
        InputError: there is no such member.
    """
    members = config["seeds"]
    if member is not None and member >= (members or 1):
        raise InputError(f"member = {member} is not accepted: expected one from 0 to {(members or 1) - 1}")
    if members is not None and member is not None:
        leaves = {name: leaf[member] for name, leaf in leaves.items()}
    tree: Params = {}
    for name, leaf in leaves.items():
        *path, last = name.split(".")
        functools.reduce(lambda at, step: at.setdefault(step, {}), path, tree)[last] = leaf
    return tree


def _from_run(path: str, options: ModelOptions) -> tuple[Transformer, Tokenizer, Params]:
    config = read_config(path)
    network, tokenizer = kind_of_model(config, path)
    place = getattr(algorithm_class(config["algorithm"]), "language_model_at", None)
    if place is None:
        raise InputError(f"model = {path!r} is not accepted: {config['algorithm']} trains no language model")
    leaves = load_under(Path(path), tuple(config["score"]), options.checkpoint, place)
    return network, tokenizer, nested(leaves, config, options.member)


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


def both_answers(rows: Preferences) -> tuple[Prompt, Int[Array, "2B T"], Bool[Array, "2B T"]]:
    """The completions of pairs as one batch, all that were chosen and then all that were rejected: prompts, tokens and
    which of them are real."""
    prompt = Prompt(*(jnp.concatenate([x, x]) for x in (rows.prompt, rows.prompt_mask)))
    tokens = jnp.concatenate([rows.chosen, rows.rejected])
    return prompt, tokens, jnp.concatenate([rows.chosen_mask, rows.rejected_mask])


def log_prob_of(
    network: Transformer, params: Params, prompt: Prompt, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B"]:
    """log pi(y | x) of each completion, the sum over its real tokens."""
    logits = completion_logits(network, params, prompt, tokens)
    log_prob = -optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return jnp.sum(jnp.where(mask, log_prob, 0.0), axis=1)
