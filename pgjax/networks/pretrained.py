"""Language models in folders as Hugging Face keeps them: `config.json` beside `model.safetensors`.

Pickled weights are never read: reading them runs what they contain.
"""

import dataclasses
import functools
import importlib
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.core.algorithm import Params
from pgjax.core.errors import InputError
from pgjax.networks.families import FAMILIES, config_of, family_of, model_of
from pgjax.networks.transformer import Transformer

COPIED = [
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "generation_config.json"),
]
"""What belongs to a model besides its weights: its tokenizer, and how texts are sampled."""
BUFFERS = ".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"
"""Constants that older versions of transformers kept among the weights."""
SIDE_BY_SIDE = "query", "key", "value"
"""In GPT-2's tensors."""


class Source(NamedTuple):
    """Where a parameter, or the row of it that belongs to one block, lies in the files."""

    tensor: str
    shape: tuple[int, ...]
    """Of the tensor."""
    transposed: bool
    third: int | None
    """Of the last axis of a tensor that holds queries, keys and values side by side."""


class Stored(NamedTuple):
    """A tensor in a file that is open."""

    file: Any
    name: str

    def read(self) -> np.ndarray:
        """Its values; NumPy knows bfloat16 from jax."""
        return self.file.get_tensor(self.name)

    def describe(self) -> tuple[str, tuple[int, ...]]:
        """Its type as safetensors writes it, and its shape."""
        header = self.file.get_slice(self.name)
        return header.get_dtype(), tuple(header.get_shape())


def load_pretrained(
    path: str | Path,
    dtype: Literal["float32", "bfloat16"] = "float32",
    param_dtype: Literal["float32", "bfloat16"] = "float32",
) -> tuple[Transformer, Params]:
    """The language model in a Hugging Face folder, and its parameters: GPT-2, Llama, Qwen2 or Qwen3.

    Weights may be in one file or several. They are read one tensor at a time, so that the model is never in memory
    twice. Needs the extra `language`.

    Raises:
        InputError: the folder holds no such model, its config has an option that is not computed here, or its tensors
            are not those of its config.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"path = {str(path)!r} is no folder: expected one with config.json and model.safetensors")
    name, model = model_of(_read_json(folder / "config.json"), str(folder / "config.json"))
    model = dataclasses.replace(model, dtype=dtype, param_dtype=param_dtype)
    sources = _sources(name, model)
    with ExitStack() as files:
        stored = _stored(folder, FAMILIES[name].base, files)
        _check_stored(folder, stored, sources, model.tied)

        def parameter(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
            array = np.empty(like.shape, like.dtype)
            for row, source in zip(_rows(_name(path), array), sources[_name(path)], strict=True):
                tensor = stored[source.tensor].read()
                part = tensor if source.third is None else np.split(tensor, 3, axis=-1)[source.third]
                row[...] = part.T if source.transposed else part
            return jnp.asarray(array)

        return model, jax.tree_util.tree_map_with_path(parameter, _shapes(model))


def save_pretrained(
    path: str | Path,
    model: Transformer,
    params: Params,
    family: Literal["gpt2", "llama", "qwen2", "qwen3"] | None = None,
    copy_from: str | Path | None = None,
) -> None:
    """Write a language model as a folder that transformers and `load_pretrained` read; needs the extra `language`.

    Each file is replaced at once, `config.json` last. This needs host memory for the parameters once more.

    Args:
        family: what the model is written as; without it the first that can hold it.
        copy_from: a folder whose tokenizer files and ids of special tokens are written too.

    Raises:
        InputError: no such family can hold the model, `params` are not those of the model, `copy_from` is no folder, or
            `path` cannot be one.
    """
    name = family_of(model, family)
    if copy_from is not None and not Path(copy_from).is_dir():
        raise InputError(f"copy_from = {str(copy_from)!r} is no folder: expected one with a tokenizer")
    config = config_of(model, name) | _token_ids(copy_from)
    tensors = _tensors(name, model, params)
    save_file = _safetensors("safetensors.numpy").save_file
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"path = {str(path)!r} cannot be written: {error.strerror}") from error
    _replace(folder / "model.safetensors", lambda file: save_file(tensors, str(file), metadata={"format": "pt"}))
    for original in [Path(copy_from, each) for each in COPIED] if copy_from is not None else []:
        if original.is_file():
            _replace(folder / original.name, functools.partial(shutil.copyfile, original))
    _replace(folder / "config.json", lambda file: file.write_text(json.dumps(config, indent=2) + "\n"))


def _sources(name: str, model: Transformer) -> dict[str, list[Source]]:
    """For each parameter where its rows lie, as `_rows` gives them."""
    sources = {}
    for path, like in _leaves(_shapes(model)).items():
        module, _, kind = path.removeprefix("blocks.").partition(".")
        tensor = f"{FAMILIES[name].modules[module]}.{'bias' if kind == 'bias' else 'weight'}"
        shape, numbers, third = like.shape, range(1), None
        transposed = kind == "kernel" and name != "gpt2"
        if path.startswith("blocks."):
            shape, numbers = shape[1:], range(model.layers)
        if transposed:
            shape = shape[::-1]
        if name == "gpt2" and module in SIDE_BY_SIDE:
            shape, third = (*shape[:-1], 3 * shape[-1]), SIDE_BY_SIDE.index(module)
        sources[path] = [Source(tensor.format(number), shape, transposed, third) for number in numbers]
    return sources


def _rows(path: str, array: np.ndarray) -> np.ndarray:
    """A parameter block by block, or as the only row."""
    return array if path.startswith("blocks.") else array[None]


def _shapes(model: Transformer) -> Params:
    return jax.eval_shape(lambda: model.init_text(jax.random.key(0)))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _leaves(params: Params) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def _stored(folder: Path, base: str, files: ExitStack) -> dict[str, Stored]:
    """All tensors of a folder by their full names; `files` closes what they are read from."""
    safetensors = _safetensors("safetensors")
    stored: dict[str, Stored] = {}
    for path in _weight_files(folder):
        try:
            file = files.enter_context(safetensors.safe_open(str(path), framework="numpy"))
            names = file.keys()
        except safetensors.SafetensorError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        stored |= {name: Stored(file, name) for name in names}
    if any(name.startswith(f"{base}.") for name in stored):
        return stored
    return {name if name.startswith("lm_head.") else f"{base}.{name}": each for name, each in stored.items()}


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        others = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
        if not others:
            raise InputError(f"{folder} holds no weights: expected model.safetensors or {index.name}")
        raise InputError(
            f"{folder} holds no safetensors, and {others[0]} is not read: write it again with transformers, "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(..., safe_serialization=True)"
        )
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise InputError(f"{index} has no 'weight_map', which says what file each tensor is in")
    shards = sorted(set(names.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(f"{folder} lacks {_some(missing)} of the {len(shards)} files that {index.name} names")
    return [folder / shard for shard in shards]


def _check_stored(folder: Path, stored: dict[str, Stored], sources: dict[str, list[Source]], tied: bool) -> None:
    """Whether the tensors are those the model is made of: from the headers of the files, before any is read."""
    wanted = {source.tensor: source.shape for of in sources.values() for source in of}
    if missing := [name for name in wanted if name not in stored]:
        raise InputError(f"{folder} lacks {_some(missing)} of the {len(wanted)} tensors that its config.json asks for")
    known = wanted.keys() | ({"lm_head.weight"} if tied else set())
    if superfluous := [name for name in stored if name not in known and not name.endswith(BUFFERS)]:
        raise InputError(f"{folder} holds {_some(superfluous)}, which its config.json has no use for")
    for name, shape in wanted.items():
        kind, found = stored[name].describe()
        if found != shape:
            raise InputError(f"{folder}: {name} has shape {found}, but its config.json asks for {shape}")
        if kind not in ("F64", "F32", "F16", "BF16"):
            raise InputError(f"{folder}: {name} is of type {kind}, expected F64, F32, F16 or BF16")
    if tied and "lm_head.weight" in stored:
        embedding = stored[sources["embed"][0].tensor]
        if not np.array_equal(stored["lm_head.weight"].read(), embedding.read()):
            raise InputError(
                f"{folder}: lm_head.weight is not {embedding.name}, although its config.json says that the two are "
                "tied: expected tie_word_embeddings = false"
            )


def _some(names: list[str]) -> str:
    """The first few of them."""
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _tensors(name: str, model: Transformer, params: Params) -> dict[str, np.ndarray]:
    """The parameters as the files of the family hold them."""
    leaves, shapes = _leaves(params), _leaves(_shapes(model))
    for path in shapes.keys() | leaves.keys():
        found, expected = (np.shape(each[path]) if path in each else "absent" for each in (leaves, shapes))
        if found != expected:
            raise InputError(f"params are not those of the model: {path} is {found}, expected {expected}")
    parts: dict[str, list[np.ndarray]] = {}
    for path, sources in sorted(_sources(name, model).items(), key=lambda item: item[1][0].third or 0):
        for row, source in zip(_rows(path, np.asarray(leaves[path], model.param_dtype)), sources, strict=True):
            parts.setdefault(source.tensor, []).append(row.T if source.transposed else row)
    # In the order of C, which safetensors takes for granted.
    return {tensor: np.ascontiguousarray(np.concatenate(each, axis=-1)) for tensor, each in parts.items()}


def _token_ids(folder: str | Path | None) -> dict[str, Any]:
    """Those of special tokens in the config of a folder; without them transformers would take those of its own."""
    config: dict[str, Any] = {}
    if folder is not None and Path(folder, "config.json").is_file():
        config = _read_json(Path(folder, "config.json"))
    return {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name first: a reader or a crash sees the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _safetensors(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError("Hugging Face folders need a package: pip install 'pgjax[language]'") from error
