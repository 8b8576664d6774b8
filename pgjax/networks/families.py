"""The families of language models that `Transformer` can be: what their files call its fields and parameters.

GPT-2 (Radford et al., 2019), Llama (Grattafiori et al., 2024), Qwen2 (Yang et al., 2024) and Qwen3 (Yang et al., 2025),
as transformers writes them. What is not computed here is refused, so that a model that was read is the one that was
written.
"""

import json
from typing import Any, NamedTuple

from pgjax.core.errors import InputError
from pgjax.networks.transformer import Transformer


class Family(NamedTuple):
    """How models of one kind are written down, and what they can be."""

    architecture: str
    """The class of transformers that reads them."""
    base: str
    """What holds all tensors but `lm_head`; files without a head may leave it out."""
    keys: dict[str, str]
    """Field of `Transformer` -> key of `config.json`."""
    defaults: dict[str, Any]
    """Of keys that may be absent; 0 where the number follows from others."""
    options: dict[str, Any]
    """Keys that change what is computed -> the only value, which is also the default, that is computed here."""
    fields: dict[str, tuple[Any, ...]]
    """What the fields of `Transformer` that have no key can be."""
    modules: dict[str, str]
    """What we call the parameters -> what they do, where `{}` is the number of the block."""


_LLAMA = Family(
    architecture="LlamaForCausalLM",
    base="model",
    keys={
        "vocab": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_groups": "num_key_value_heads",
        "head_width": "head_dim",
        "mlp_width": "intermediate_size",
        "context": "max_position_embeddings",
        "norm_epsilon": "rms_norm_eps",
        "activation": "hidden_act",
        "tied": "tie_word_embeddings",
    },
    defaults={
        "num_key_value_heads": 0,
        "head_dim": 0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    options={"quantization_config": None},
    fields={
        "positions": ("rotary",),
        "norm": ("rms",),
        "gated": (True,),
        "biases": ("none", "all"),
        "query_key_norm": (False,),
    },
    modules={
        "embed": "model.embed_tokens",
        "norm": "model.norm",
        "unembed": "lm_head",
        "attention_norm": "model.layers.{}.input_layernorm",
        "query": "model.layers.{}.self_attn.q_proj",
        "key": "model.layers.{}.self_attn.k_proj",
        "value": "model.layers.{}.self_attn.v_proj",
        "query_norm": "model.layers.{}.self_attn.q_norm",
        "key_norm": "model.layers.{}.self_attn.k_norm",
        "attended": "model.layers.{}.self_attn.o_proj",
        "mlp_norm": "model.layers.{}.post_attention_layernorm",
        "gate": "model.layers.{}.mlp.gate_proj",
        "up": "model.layers.{}.mlp.up_proj",
        "down": "model.layers.{}.mlp.down_proj",
    },
)
_GPT2 = Family(
    architecture="GPT2LMHeadModel",
    base="transformer",
    keys={
        "vocab": "vocab_size",
        "width": "n_embd",
        "layers": "n_layer",
        "num_heads": "n_head",
        "mlp_width": "n_inner",
        "context": "n_positions",
        "norm_epsilon": "layer_norm_epsilon",
        "activation": "activation_function",
        "tied": "tie_word_embeddings",
    },
    defaults={
        "n_inner": 0,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    },
    options={
        "quantization_config": None,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    fields={
        "positions": ("learned",),
        "norm": ("layer",),
        "gated": (False,),
        "biases": ("all",),
        "query_key_norm": (False,),
    },
    modules={
        "embed": "transformer.wte",
        "position": "transformer.wpe",
        "norm": "transformer.ln_f",
        "unembed": "lm_head",
        "attention_norm": "transformer.h.{}.ln_1",
        "query": "transformer.h.{}.attn.c_attn",  # side by side in one tensor, like the next two
        "key": "transformer.h.{}.attn.c_attn",
        "value": "transformer.h.{}.attn.c_attn",
        "attended": "transformer.h.{}.attn.c_proj",
        "mlp_norm": "transformer.h.{}.ln_2",
        "up": "transformer.h.{}.mlp.c_fc",
        "down": "transformer.h.{}.mlp.c_proj",
    },
)
FAMILIES = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "qwen2": _LLAMA._replace(
        architecture="Qwen2ForCausalLM",
        options=_LLAMA.options | {"use_sliding_window": False},
        fields=_LLAMA.fields | {"biases": ("qkv",)},
    ),
    "qwen3": _LLAMA._replace(
        architecture="Qwen3ForCausalLM",
        defaults=_LLAMA.defaults | {"head_dim": 128},
        options=_LLAMA.options | {"use_sliding_window": False, "attention_bias": False},
        fields=_LLAMA.fields | {"biases": ("none",), "query_key_norm": (True,)},
    ),
}
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu", "relu": "relu"}
"""Theirs -> ours, which knows the tanh approximation of GELU only."""
ROTARY_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""What the numbers of `Transformer.rotary_scaling` are called."""


def model_of(config: dict[str, Any], label: str) -> tuple[str, Transformer]:
    """The family of a config, and the model it describes.

    Args:
        label: what errors call the config.

    Raises:
        InputError: another family, a size that is not given, or an option that is not computed here.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise refused(label, "model_type", name, " or ".join(FAMILIES))
    family = FAMILIES[name]
    given = family.defaults | {key: value for key, value in config.items() if value is not None}
    for key, only in family.options.items():
        if given.get(key, only) != only:
            raise refused(label, key, given[key], json.dumps(only))
    absent = [key for key in family.keys.values() if key not in given]
    if absent:
        raise InputError(f"{label} has no {absent[0]!r}, which every {name} has")
    fields = {field: accepted[0] for field, accepted in family.fields.items()}
    fields |= {field: given[key] for field, key in family.keys.items()}
    fields["num_groups"] = fields.get("num_groups") or fields["num_heads"]
    fields["mlp_width"] = fields["mlp_width"] or 4 * fields["width"]
    if fields.get("head_width", 0) * fields["num_heads"] == fields["width"]:
        fields["head_width"] = 0
    if fields["activation"] not in ACTIVATIONS:
        raise refused(label, family.keys["activation"], fields["activation"], " or ".join(ACTIVATIONS))
    fields["activation"] = ACTIVATIONS[fields["activation"]]
    if name == "llama" and given.get("attention_bias", False):
        fields["biases"] = "all"
    if name == "llama" and given.get("mlp_bias", False) != given.get("attention_bias", False):
        raise refused(label, "mlp_bias", given.get("mlp_bias", False), "the value of attention_bias")
    if fields["positions"] == "rotary":
        fields |= _rotary_fields(given, label)
    for layer in {*given.get("layer_types", ())} - {"full_attention"}:
        raise refused(label, "layer_types", layer, "full_attention")
    try:
        return name, Transformer(**fields)
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


def _rotary_fields(config: dict[str, Any], label: str) -> dict[str, Any]:
    """From `rope_parameters`, or `rope_theta` and `rope_scaling` in files from before there was that."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise refused(label, "rope_type", kind, "default or llama3")
    for key in rope.keys() - {"rope_type", "type", "rope_theta", *ROTARY_SCALING}:
        raise refused(label, f"{key} of the rope", rope[key], "none")
    fields = {"rotary_base": rope.get("rope_theta", config.get("rope_theta", 10_000.0))}
    if kind == "default":
        return fields
    rope = {"original_max_position_embeddings": config["max_position_embeddings"]} | rope
    for key in ROTARY_SCALING:
        if not isinstance(rope.get(key), (int, float)) or rope[key] % 1:
            raise refused(label, f"{key} of the rope", rope.get(key), "a whole number")
    return fields | {"rotary_scaling": tuple(int(rope[key]) for key in ROTARY_SCALING)}


def refused(label: str, key: str, value: Any, expected: str) -> InputError:
    """What to raise where the value of a key is not accepted."""
    return InputError(f"{label}: {key} = {json.dumps(value)} is not accepted: expected {expected}")


def family_of(model: Transformer, family: str | None = None) -> str:
    """`family` if it can hold the model, or without one the first that can.

    Raises:
        InputError: an unknown family, or a field that it cannot hold.
    """
    if family is not None and family not in FAMILIES:
        raise InputError(f"family = {family!r} is not accepted: expected {' or '.join(FAMILIES)}")
    objections = {name: _objection(name, model) for name in ([family] if family else FAMILIES)}
    for name, objection in objections.items():
        if objection is None:
            return name
    raise InputError("; ".join(f"{name} cannot hold Transformer.{why}" for name, why in objections.items()))


def _objection(name: str, model: Transformer) -> str | None:
    """The first field that the family cannot hold, and what it can."""
    for field, accepted in FAMILIES[name].fields.items():
        if getattr(model, field) not in accepted:
            return f"{field} = {getattr(model, field)!r}, only {' or '.join(map(repr, accepted))}"
    if name == "gpt2" and model.num_groups != model.num_heads:
        return f"num_groups = {model.num_groups}, only num_heads = {model.num_heads}"
    if name == "gpt2" and model.depth * model.num_heads != model.width:
        return f"head_width = {model.head_width}, only width / num_heads = {model.width / model.num_heads}"
    if name == "llama" and model.width % model.num_heads:
        return f"width = {model.width}, only multiples of num_heads = {model.num_heads}"
    return None


def config_of(model: Transformer, name: str) -> dict[str, Any]:
    """What `model_of` makes the model from; older versions of transformers read it too."""
    family = FAMILIES[name]
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": name,
        "torch_dtype": model.param_dtype,
    }
    config |= {key: getattr(model, field) for field, key in family.keys.items()}
    config[family.keys["activation"]] = next(key for key, ours in ACTIVATIONS.items() if ours == model.activation)
    if name == "llama":
        config |= {"attention_bias": model.biases == "all", "mlp_bias": model.biases == "all"}
    if model.positions == "rotary":
        config |= {"head_dim": model.depth, "rope_theta": model.rotary_base}
    if model.positions == "rotary" and model.rotary_scaling:
        *factors, context = model.rotary_scaling
        scaling = zip(ROTARY_SCALING, [*map(float, factors), context], strict=True)
        config["rope_scaling"] = {"rope_type": "llama3"} | dict(scaling)
    return config
