"""The blocks of a decoder-only transformer, whatever they attend to: episodes or text.

Pre-norm blocks (Xiong et al., 2020) with rotary or learned positions, RMS or layer norm, grouped-query attention
(Ainslie et al., 2023), a plain or gated MLP (Shazeer, 2020), biases and query-key norm as switches: enough for the
weights of GPT-2, Llama, Qwen2 and Qwen3. Blocks are stacked on the first axis of their parameters and scanned, so that
a deep network compiles like one block.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pgjax.core.algorithm import Key, Params
from pgjax.core.devices import gathered
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import check_fields, field, pytree

INIT_STD = 0.02
"""Of all weights; those that write into the residual stream are divided by sqrt(2 layers) (Radford et al., 2019)."""

Attend = Callable[[Any, Any, Array, Array, Array], tuple[Any, Any, Array]]
"""(carry, of this block, query, key, value `[B, T, heads, depth]`) -> (carry, of this block, what was attended to)."""


@pytree
class Decoder:
    """The shape of the blocks, and the precision they work in: declarations and their checks."""

    width: int = field("width of the residual stream", default=64, accepts="[1, inf)")
    layers: int = field("blocks of attention and MLP", default=2, accepts="[1, inf)")
    num_heads: int = field("attention heads", default=4, accepts="[1, inf)")
    num_groups: int = field("heads of keys and values; they divide num_heads", default=4, accepts="[1, inf)")
    head_width: int = field("width of each head; 0 is width / num_heads", default=0, accepts="[0, inf)")
    mlp_width: int = field("width of the hidden layer of each MLP", default=256, accepts="[1, inf)")
    context: int = field("newest steps of an episode, or tokens, that are attended to", default=32, accepts="[1, inf)")
    positions: Literal["rotary", "learned"] = field("how a step knows its place in the episode", default="rotary")
    rotary_base: float = field("the slowest pair turns once in 2 pi times this", default=10_000.0, accepts="(0, inf)")
    rotary_scaling: tuple[int, ...] = field(
        "to read further than was trained: factor, low and high turns, trained context; () is not at all",
        default=(),
        accepts="[1, inf)",
    )
    norm: Literal["rms", "layer"] = field("what normalises the input of attention and MLP", default="rms")
    norm_epsilon: float = field("added to the variance that a norm divides by", default=1e-5, accepts="(0, inf)")
    gated: bool = field("the MLP's hidden layer is multiplied by a gate", default=True)
    activation: Literal["gelu", "silu", "relu"] = field("nonlinearity of the MLP", default="silu")
    biases: Literal["none", "qkv", "all"] = field(
        "which linear layers have biases: none, those of queries, keys and values, or all", default="none"
    )
    query_key_norm: bool = field("queries and keys are normalised before their product", default=False)
    dtype: Literal["float32", "bfloat16"] = field("precision of activations and products", default="float32")
    param_dtype: Literal["float32", "bfloat16"] = field("precision parameters are kept in", default="float32")
    remat: bool = field("compute each block again in the backward pass instead of keeping it", default=False)

    def __post_init__(self) -> None:
        check_fields(self)
        divisors = ([] if self.head_width else [("width", "num_heads")]) + [("num_heads", "num_groups")]
        for larger, smaller in divisors:
            if getattr(self, larger) % getattr(self, smaller):
                raise InputError(
                    f"Transformer.{smaller} = {getattr(self, smaller)} is not accepted: expected a divisor of "
                    f"{larger} = {getattr(self, larger)}"
                )
        if self.positions == "rotary" and self.depth % 2:
            named = "head_width" if self.head_width else "num_heads"
            raise InputError(
                f"Transformer.{named} = {getattr(self, named)} is not accepted: rotary positions need heads of even "
                f"width, not {self.depth}"
            )
        if self.rotary_scaling and (len(self.rotary_scaling) != 4 or self.rotary_scaling[1] >= self.rotary_scaling[2]):
            raise InputError(
                f"Transformer.rotary_scaling = {self.rotary_scaling} is not accepted: expected (), or a factor, low "
                "turns, high turns above them, and a context"
            )

    @property
    def depth(self) -> int:
        """Width of each head."""
        return self.head_width or self.width // self.num_heads


def normal(config: Decoder, key: Key, *shape: int, std: float = INIT_STD) -> Array:
    """Initial weights."""
    return (std * jax.random.normal(key, shape)).astype(config.param_dtype)


def init_norm(config: Decoder, *shape: int) -> Params:
    """A norm that scales by 1; `shape` ends with the width it normalises."""
    bias = {"bias": jnp.zeros(shape, config.param_dtype)} if config.norm == "layer" else {}
    return {"scale": jnp.ones(shape, config.param_dtype)} | bias


def linear_layers(config: Decoder) -> dict[str, tuple[int, int, bool]]:
    """The linear layers of a block: name -> (inputs, outputs, whether it has a bias)."""
    queries, groups = config.num_heads * config.depth, config.num_groups * config.depth
    sizes = {"query": (config.width, queries), "key": (config.width, groups), "value": (config.width, groups)}
    sizes |= {"attended": (queries, config.width), "up": (config.width, config.mlp_width)}
    sizes |= {"gate": (config.width, config.mlp_width)} if config.gated else {}
    sizes["down"] = config.mlp_width, config.width
    with_bias = {"none": (), "qkv": ("query", "key", "value"), "all": tuple(sizes)}[config.biases]
    return {name: (*size, name in with_bias) for name, size in sizes.items()}


def init_blocks(config: Decoder, key: Key) -> Params:
    """The parameters of all blocks, stacked on the first axis."""
    layers = linear_layers(config)
    blocks: Params = {}
    for layer_key, (name, (inputs, outputs, bias)) in zip(
        jax.random.split(key, len(layers)), layers.items(), strict=True
    ):
        std = INIT_STD / (2 * config.layers) ** 0.5 if name in ("attended", "down") else INIT_STD
        blocks[name] = {"kernel": normal(config, layer_key, config.layers, inputs, outputs, std=std)}
        if bias:
            blocks[name]["bias"] = jnp.zeros((config.layers, outputs), config.param_dtype)
    norms = {"attention_norm": config.width, "mlp_norm": config.width}
    norms |= {"query_norm": config.depth, "key_norm": config.depth} if config.query_key_norm else {}
    return blocks | {name: init_norm(config, config.layers, size) for name, size in norms.items()}


def run_blocks(
    config: Decoder,
    blocks: Params,
    x: Float[Array, "B T width"],
    position: Int[Array, "B T"],
    attend: Attend,
    carry: Any = (),
    of_blocks: Any = None,
) -> tuple[Float[Array, "B T width"], Any, Any]:
    """The residual stream through all blocks.

    The backward pass is given the products with weights, and computes again what lies between them, which takes less
    time than to keep it; with `remat` it is given nothing but the stream.

    Args:
        attend: what the steps attend to. It is given what goes from block to block, and what belongs to the block.
        carry: what goes into the first block.
        of_blocks: stacked on the first axis.

    Returns:
        The stream, the carry after the last block, and what `attend` gave for each block, stacked.
    """

    def block(state: tuple[Array, Any], layer: tuple[Params, Any]) -> tuple[tuple[Array, Any], Any]:
        (x, carry), (weights, own) = state, layer
        weights = gathered(weights)
        query, key, value = _queries_keys_values(config, weights, normalized(config, weights["attention_norm"], x))
        if config.positions == "rotary":
            query, key = (_rotated(config, each, position) for each in (query, key))
        carry, own, mixed = attend(carry, own, query, key, value)
        x = x + linear(weights["attended"], mixed.reshape(*x.shape[:2], -1))
        x = x + _mlp(config, weights, normalized(config, weights["mlp_norm"], x))
        return (x, carry), own

    kept = None if config.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    scanned = jax.checkpoint(block, policy=kept, prevent_cse=False)
    (x, carry), of_blocks = jax.lax.scan(scanned, (x.astype(config.dtype), carry), (blocks, of_blocks))
    return x, carry, of_blocks


def attention(
    query: Float[Array, "B T heads depth"], key: Array, value: Array, mask: Array | None, is_causal: bool = False
) -> Float[Array, "B T heads depth"]:
    """Softmax attention of grouped heads; on a GPU in bfloat16 by cuDNN's fused kernel."""
    fused = jax.default_backend() == "gpu" and query.dtype == jnp.bfloat16 and query.shape[1] > 1
    kernel: Any = "cudnn" if fused else None
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal, implementation=kernel)


def linear(weights: Params, x: Array) -> Array:
    """x W + b, in the precision of x; as a product of matrices, whose gradients XLA computes faster than those of more
    axes."""
    flat = x.reshape(-1, x.shape[-1]) @ weights["kernel"].astype(x.dtype)
    product = flat.reshape(*x.shape[:-1], -1)
    return product + weights["bias"].astype(x.dtype) if "bias" in weights else product


def normalized(config: Decoder, weights: Params, x: Array) -> Array:
    """x / rms(x) (Zhang & Sennrich, 2019), or (x - mean) / std (Ba et al., 2016), times a scale and plus a bias; the
    moments in float32."""
    exact = x.astype(jnp.float32)
    if config.norm == "layer":
        exact = exact - jnp.mean(exact, axis=-1, keepdims=True)
    scaled = exact * jax.lax.rsqrt(jnp.mean(exact**2, axis=-1, keepdims=True) + config.norm_epsilon)
    return (scaled * weights["scale"] + weights.get("bias", 0.0)).astype(x.dtype)


def _queries_keys_values(config: Decoder, weights: Params, x: Array) -> tuple[Array, Array, Array]:
    """`[B, T, heads or groups, depth]` each."""

    def split(name: str) -> Array:
        return linear(weights[name], x).reshape(*x.shape[:2], -1, config.depth)

    query, key, value = split("query"), split("key"), split("value")
    if config.query_key_norm:
        query = normalized(config, weights["query_norm"], query)
        key = normalized(config, weights["key_norm"], key)
    return query, key, value


def _rotated(config: Decoder, x: Float[Array, "B T heads depth"], position: Int[Array, "B T"]) -> Array:
    """Rotary positions (Su et al., 2021): the pair (x_i, x_{i + depth/2}) turned by position * base^(-2 i / depth)."""
    half = x.shape[-1] // 2
    angle = position[..., None, None] * _frequencies(config, half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _frequencies(config: Decoder, half: int) -> Float[Array, "half"]:
    """How far each pair turns per position. Scaled as in Llama 3.1 (Grattafiori et al., 2024): pairs that turn fewer
    than `low` times in the trained context turn `factor` times slower, those above `high` as before, between linear."""
    frequency = config.rotary_base ** (-jnp.arange(half) / half)
    if not config.rotary_scaling:
        return frequency
    factor, low, high, context = config.rotary_scaling
    kept = jnp.clip((context * frequency / (2 * jnp.pi) - low) / (high - low), 0.0, 1.0)
    return frequency * (kept + (1.0 - kept) / factor)


def _mlp(config: Decoder, weights: Params, x: Array) -> Array:
    hidden = getattr(jax.nn, config.activation)(linear(weights["gate" if config.gated else "up"], x))
    return linear(weights["down"], hidden * linear(weights["up"], x) if config.gated else hidden)
