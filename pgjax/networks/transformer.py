"""Networks that attend to what came before within an episode: `Transformer`, decoder only.

Pre-norm blocks (Xiong et al., 2020) with rotary or learned positions, RMS or layer norm, grouped-query attention
(Ainslie et al., 2023), a plain or gated MLP (Shazeer, 2020), biases and query-key norm as switches. The memory of an
episode is the keys and values of its newest `context` steps, in a ring: what is older is not attended to, in acting and
in learning alike, so a position sees the same past whether it is reached step by step or unrolled.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.core.algorithm import Key, Params
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import check_fields, field, pytree
from pgjax.environments.base import Box, Space
from pgjax.networks.heads import Heads, each_torso, heads, init_heads, torso_names
from pgjax.networks.network import Memory, Output

INIT_STD = 0.02
"""Of all weights; those that write into the residual stream are divided by sqrt(2 layers) (Radford et al., 2019)."""
ROTARY_BASE = 10_000.0


class Cache(NamedTuple):
    """What is remembered of the episode under way. The step at position p lies in slot p modulo `context`."""

    key: Float[Array, "B layers context groups depth"]
    value: Float[Array, "B layers context groups depth"]
    position: Int[Array, "B"]
    """Steps of the episode so far."""


class Past(NamedTuple):
    """Where the steps of an unroll stand, and what each may attend to: the slots of the cache, then the steps."""

    position: Int[Array, "T B"]
    """Within the episode."""
    mask: Bool[Array, "B 1 T context_and_T"]
    source: Int[Array, "B context"]
    """For each slot afterwards, which of the slots and steps fills it."""
    filled: Bool[Array, "B context"]
    """False for slots that the episode has not reached."""


@pytree
class Transformer(Heads):
    """A decoder-only transformer over the steps of an episode, with flattened observations through a linear layer."""

    width: int = field("width of the residual stream", default=64, accepts="[1, inf)")
    layers: int = field("blocks of attention and MLP", default=2, accepts="[1, inf)")
    num_heads: int = field("attention heads; they divide width", default=4, accepts="[1, inf)")
    num_groups: int = field("heads of keys and values; they divide num_heads", default=4, accepts="[1, inf)")
    mlp_width: int = field("width of the hidden layer of each MLP", default=256, accepts="[1, inf)")
    context: int = field("newest steps of an episode that are attended to", default=32, accepts="[1, inf)")
    positions: Literal["rotary", "learned"] = field("how a step knows its place in the episode", default="rotary")
    norm: Literal["rms", "layer"] = field("what normalises the input of attention and MLP", default="rms")
    gated: bool = field("the MLP's hidden layer is multiplied by a gate", default=True)
    activation: Literal["gelu", "silu", "relu"] = field("nonlinearity of the MLP", default="silu")
    biases: bool = field("linear layers have biases", default=False)
    query_key_norm: bool = field("queries and keys are normalised before their product", default=False)

    def __post_init__(self) -> None:
        check_fields(self)
        for larger, smaller in (("width", "num_heads"), ("num_heads", "num_groups")):
            if getattr(self, larger) % getattr(self, smaller):
                raise InputError(
                    f"Transformer.{smaller} = {getattr(self, smaller)} is not accepted: expected a divisor of "
                    f"{larger} = {getattr(self, larger)}"
                )
        if self.positions == "rotary" and self.width // self.num_heads % 2:
            raise InputError(
                f"Transformer.num_heads = {self.num_heads} is not accepted: rotary positions need heads of even width, "
                f"not {self.width // self.num_heads}"
            )

    def init(self, key: Key, observation_space: Box, action_space: Space) -> Params:
        """Per torso an embedding, blocks stacked on their first axis, and a norm; heads on the normalised stream."""
        key, head_key = jax.random.split(key)
        size = math.prod(observation_space.shape)
        torsos = {
            name: _init_torso(self, torso_key, size) for name, torso_key in each_torso(key, self.shared_torso).items()
        }
        return torsos | init_heads(self, head_key, self.width, action_space)

    def initial_memory(self, batch: int) -> Memory:
        """An empty cache per torso."""
        shape = batch, self.layers, self.context, self.num_groups, self.width // self.num_heads
        empty = Cache(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(batch, jnp.int32))
        return dict.fromkeys(torso_names(self.shared_torso), empty)

    def step(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """`unroll` over a single step: its query attends to the cache."""
        memory, output = self.unroll(params, memory, obs[None], reset[None])
        return memory, jax.tree.map(lambda x: x[0], output)

    def unroll(self, params: Params, memory: Memory, obs: Array, reset: Array) -> tuple[Memory, Output]:
        """All steps at once, under a mask that is causal, stops at resets, and reaches `context` steps back."""
        flat = obs.reshape(*obs.shape[:2], -1)
        both = {name: _stream(self, params[name], cache, flat, reset) for name, cache in memory.items()}
        return {name: cache for name, (cache, _) in both.items()}, heads(self, params, lambda name: both[name][1])


def _init_torso(config: Transformer, key: Key, size: int) -> Params:
    width, depth = config.width, config.width // config.num_heads
    inward = {"query": width, "key": config.num_groups * depth, "value": config.num_groups * depth}
    inward |= {"up": config.mlp_width} | ({"gate": config.mlp_width} if config.gated else {})
    outward = {"attended": width, "down": config.mlp_width}
    embed_key, position_key, *keys = jax.random.split(key, 2 + len(inward) + len(outward))

    def normal(key: Key, *shape: int, std: float = INIT_STD) -> Array:
        return std * jax.random.normal(key, shape)

    def linear(key: Key, inputs: int, outputs: int, std: float = INIT_STD) -> Params:
        kernel = {"kernel": normal(key, config.layers, inputs, outputs, std=std)}
        return kernel | ({"bias": jnp.zeros((config.layers, outputs))} if config.biases else {})

    def norm(*shape: int) -> Params:
        return {"scale": jnp.ones(shape)} | ({"bias": jnp.zeros(shape)} if config.norm == "layer" else {})

    blocks = {name: linear(k, width, outputs) for k, (name, outputs) in zip(keys, inward.items(), strict=False)}
    residual_std = INIT_STD / (2 * config.layers) ** 0.5
    for k, (name, inputs) in zip(keys[len(inward) :], outward.items(), strict=True):
        blocks[name] = linear(k, inputs, width, std=residual_std)
    blocks |= {"attention_norm": norm(config.layers, width), "mlp_norm": norm(config.layers, width)}
    if config.query_key_norm:
        blocks |= {"query_norm": norm(config.layers, depth), "key_norm": norm(config.layers, depth)}
    torso: Params = {"embed": {"kernel": normal(embed_key, size, width, std=size**-0.5), "bias": jnp.zeros(width)}}
    if config.positions == "learned":
        torso["position"] = normal(position_key, config.context, width)
    return torso | {"blocks": blocks, "norm": norm(width)}


def _stream(
    config: Transformer, params: Params, cache: Cache, obs: Float[Array, "T B size"], reset: Bool[Array, "T B"]
) -> tuple[Cache, Float[Array, "T B width"]]:
    """The cache after the steps, and the normalised residual stream at each."""
    past = _past(cache.position, reset, config.context)
    x = _linear(params["embed"], obs)
    if config.positions == "learned":
        x += params["position"][past.position % config.context]

    def block(x: Array, layer: tuple[Params, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        weights, keys, values = layer
        normalized = _norm(config, weights["attention_norm"], x)
        attended, keys, values = _attend(config, weights, normalized, keys, values, past)
        x = x + attended
        return x + _mlp(config, weights, _norm(config, weights["mlp_norm"], x)), (keys, values)

    by_layer = jnp.moveaxis(cache.key, 1, 0), jnp.moveaxis(cache.value, 1, 0)
    x, cached = jax.lax.scan(block, x, (params["blocks"], *by_layer))
    keys, values = (jnp.moveaxis(x, 0, 1) for x in cached)
    return Cache(keys, values, past.position[-1] + 1), _norm(config, params["norm"], x)


def _past(before: Int[Array, "B"], reset: Bool[Array, "T B"], context: int) -> Past:
    """What the steps of an unroll may see, after `before` steps of the episode that was under way."""
    T = reset.shape[0]
    time = jnp.arange(T)[:, None]
    start = jax.lax.cummax(jnp.where(reset, time, -before), axis=0)  # of the episode, which may lie before the unroll
    position = time - start
    of_slot = _newest_position(before, context)
    same_episode = jnp.cumsum(reset, axis=0) == 0
    to_cache = (of_slot >= 0) & (position[..., None] - of_slot < context) & same_episode[..., None]
    to_steps = (start[:, None] == start[None]) & (time[:, None] >= time[None]) & (time[:, None] - time[None] < context)
    mask = jnp.concatenate([to_cache.transpose(1, 0, 2), to_steps.transpose(2, 0, 1)], axis=-1)[:, None]
    slots = _newest_position(position[-1] + 1, context)
    step = T - (position[-1][:, None] + 1 - slots)
    source = jnp.where((slots >= 0) & (step >= 0), context + step, jnp.arange(context))
    return Past(position, mask, source, slots >= 0)


def _newest_position(steps: Int[Array, "B"], context: int) -> Int[Array, "B context"]:
    """The newest of so many positions that lies in each slot; negative where there is none yet."""
    newest = steps[:, None] - 1
    return newest - (newest - jnp.arange(context)) % context


def _attend(
    config: Transformer, weights: Params, x: Array, keys: Array, values: Array, past: Past
) -> tuple[Float[Array, "T B width"], Array, Array]:
    """Attention of all steps to the cache and to each other; with it the cache's keys and values afterwards."""

    def split(name: str, count: int) -> Float[Array, "B T count depth"]:
        projected = _linear(weights[name], x)
        return projected.reshape(*x.shape[:2], count, -1).swapaxes(0, 1)

    query, key, value = (
        split("query", config.num_heads),
        split("key", config.num_groups),
        split("value", config.num_groups),
    )
    if config.query_key_norm:
        query, key = _norm(config, weights["query_norm"], query), _norm(config, weights["key_norm"], key)
    if config.positions == "rotary":
        query, key = (_rotated(x, past.position.T) for x in (query, key))
    keys, values = jnp.concatenate([keys, key], axis=1), jnp.concatenate([values, value], axis=1)
    mixed = jax.nn.dot_product_attention(query, keys, values, mask=past.mask)
    attended = _linear(weights["attended"], mixed.swapaxes(0, 1).reshape(x.shape))

    def kept(x: Array) -> Array:
        chosen = jnp.take_along_axis(x, past.source[..., None, None], axis=1)
        return jnp.where(past.filled[..., None, None], chosen, 0.0)

    return attended, kept(keys), kept(values)


def _rotated(x: Float[Array, "B T count depth"], position: Int[Array, "B T"]) -> Float[Array, "B T count depth"]:
    """Rotary positions (Su et al., 2021): the pair (x_i, x_{i + depth/2}) turned by position * base^(-2 i / depth)."""
    half = x.shape[-1] // 2
    angle = position[..., None, None] * ROTARY_BASE ** (-jnp.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], axis=-1)


def _mlp(config: Transformer, weights: Params, x: Float[Array, "T B width"]) -> Float[Array, "T B width"]:
    hidden = getattr(jax.nn, config.activation)(_linear(weights["gate" if config.gated else "up"], x))
    return _linear(weights["down"], hidden * _linear(weights["up"], x) if config.gated else hidden)


def _linear(weights: Params, x: Array) -> Array:
    return x @ weights["kernel"] + weights.get("bias", 0.0)


def _norm(config: Transformer, weights: Params, x: Array) -> Array:
    """x / rms(x) (Zhang & Sennrich, 2019), or (x - mean) / std (Ba et al., 2016), times a scale and plus a bias."""
    if config.norm == "layer":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5) * weights["scale"] + weights.get(
        "bias", 0.0
    )
