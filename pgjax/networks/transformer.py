"""Transformers over the steps of an episode, or over tokens: `Transformer`, decoder only.

In an environment its memory is the keys and values of the newest `context` steps of the episode, in a ring: what is
older is not attended to, in acting and in learning alike, so a position sees the same past whether it is reached step
by step or unrolled. As a language model it reads all tokens of a text at once (`hidden`, `logits`), or a prompt first
and then token by token (`prefill`, `decode`), to the same numbers.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.core.algorithm import Key, Params
from pgjax.core.devices import gathered
from pgjax.core.hyperparameters import field, pytree
from pgjax.environments.base import Box, Space
from pgjax.networks.decoder import Decoder, attention, init_blocks, init_norm, linear, normal, normalized, run_blocks
from pgjax.networks.heads import Heads, each_torso, heads, init_heads, torso_names
from pgjax.networks.network import Memory, Output


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


class TextCache(NamedTuple):
    """What a language model remembers of the texts it has read so far: one slot per token, padding included."""

    key: Float[Array, "layers B slots groups depth"]
    value: Float[Array, "layers B slots groups depth"]
    real: Bool[Array, "B slots"]
    """False for padding, and for slots that are not filled yet."""
    length: Int[Array, "B"]
    """Real tokens so far, which is the position of the next one."""


@pytree
class Transformer(Decoder, Heads):
    """A decoder-only transformer: in an environment over flattened observations through a linear layer, or over tokens.

    As a language model its parameters are `"embed"` `[vocab, width]`, `"position"` `[context, width]` where positions
    are learned, `"blocks"`, `"norm"`, and `"unembed"` `[vocab, width]` unless that is the embedding itself.
    """

    vocab: int = field(
        "tokens it knows as a language model; 0 is as many as its tokenizer has", default=0, accepts="[0, inf)"
    )
    tied: bool = field("a language model reads and writes tokens by the same embedding", default=True)

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
        shape = batch, self.layers, self.context, self.num_groups, self.depth
        empty = Cache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype), jnp.zeros(batch, jnp.int32))
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

    def init_text(self, key: Key) -> Params:
        """The parameters of a new language model."""
        embed_key, unembed_key, body_key = jax.random.split(key, 3)
        unembed = {} if self.tied else {"unembed": normal(self, unembed_key, self.vocab, self.width)}
        return {"embed": normal(self, embed_key, self.vocab, self.width)} | unembed | _init_body(self, body_key)

    def hidden(
        self, params: Params, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L width"]:
        """The normalised stream at each token, which has read what is before it. `mask` says which tokens are real:
        the others are not read, and a token's position is the number of real ones before it."""
        x, _ = self._read(params, tokens, mask)
        return normalized(self, params["norm"], x)

    def unembed(self, params: Params, hidden: Float[Array, "*tokens width"]) -> Float[Array, "*tokens vocab"]:
        """The logits of the next token, in float32."""
        matrix = gathered(params["embed" if self.tied else "unembed"]).astype(hidden.dtype)
        return jnp.einsum("...w,vw->...v", hidden, matrix, preferred_element_type=jnp.float32)

    def logits(
        self, params: Params, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L vocab"]:
        """`unembed` of `hidden`: what each token says of the next one. `mask` as there."""
        return self.unembed(params, self.hidden(params, tokens, mask))

    def _read(self, params: Params, tokens: Array, mask: Array | None) -> tuple[Array, tuple[Array, Array]]:
        """The stream at each token, and the keys and values of all blocks."""
        real = None if mask is None else mask[:, None, None]

        def attend(_: Any, __: Any, query: Array, key: Array, value: Array) -> tuple[Any, Any, Array]:
            return (), (key, value), attention(query, key, value, real, is_causal=True)

        x, position = _embedded(self, params, tokens, mask)
        x, _, cached = run_blocks(self, params["blocks"], x, position, attend)
        return x, cached

    def prefill(
        self, params: Params, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"], room: int
    ) -> tuple[TextCache, Float[Array, "B width"]]:
        """Read prompts, which are padded on the left; what is remembered of them, with room for so many tokens more,
        and the normalised stream at the last token of each."""

        x, cached = self._read(params, tokens, mask)
        keys, values = (jnp.pad(each, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))) for each in cached)
        cache = TextCache(keys, values, jnp.pad(mask, ((0, 0), (0, room))), jnp.sum(mask, axis=1, dtype=jnp.int32))
        return cache, normalized(self, params["norm"], x[:, -1])

    def decode(
        self, params: Params, cache: TextCache, slot: Int[Array, ""], token: Int[Array, "B"]
    ) -> tuple[TextCache, Float[Array, "B width"]]:
        """Read one more token of each text, which comes to lie in `slot`."""
        real = cache.real | (jnp.arange(cache.real.shape[1]) == slot)
        mask = real[:, None, None]

        def attend(carry: Any, layer: Array, query: Array, key: Array, value: Array) -> tuple[Any, Any, Array]:
            carry = tuple(
                jax.lax.dynamic_update_slice(all_layers, new[None], (layer, 0, slot, 0, 0))
                for all_layers, new in zip(carry, (key, value), strict=True)
            )
            keys, values = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in carry)
            return carry, None, attention(query, keys, values, mask)

        position = cache.length[:, None]
        x = _placed(self, params, gathered(params["embed"])[token[:, None]], position)
        layers = jnp.arange(self.layers)
        x, (keys, values), _ = run_blocks(self, params["blocks"], x, position, attend, (cache.key, cache.value), layers)
        return TextCache(keys, values, real, cache.length + 1), normalized(self, params["norm"], x[:, 0])


def _init_body(config: Transformer, key: Key) -> Params:
    """Everything between the embedding and the heads."""
    position_key, block_key = jax.random.split(key)
    body = {"blocks": init_blocks(config, block_key), "norm": init_norm(config, config.width)}
    if config.positions == "learned":
        body["position"] = normal(config, position_key, config.context, config.width)
    return body


def _init_torso(config: Transformer, key: Key, size: int) -> Params:
    embed_key, body_key = jax.random.split(key)
    kernel = normal(config, embed_key, size, config.width, std=size**-0.5)
    embed = {"kernel": kernel, "bias": jnp.zeros(config.width, config.param_dtype)}
    return {"embed": embed} | _init_body(config, body_key)


def _embedded(
    config: Transformer, params: Params, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None
) -> tuple[Float[Array, "B L width"], Int[Array, "B L"]]:
    """Tokens as vectors, and their positions."""
    if mask is None:
        position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    else:
        position = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    return _placed(config, params, gathered(params["embed"])[tokens], position), position


def _placed(config: Transformer, params: Params, x: Array, position: Array) -> Array:
    """With learned positions added, where there are any."""
    return x + gathered(params["position"])[position % config.context] if config.positions == "learned" else x


def _stream(
    config: Transformer, params: Params, cache: Cache, obs: Float[Array, "T B size"], reset: Bool[Array, "T B"]
) -> tuple[Cache, Float[Array, "T B width"]]:
    """The cache after the steps, and the normalised residual stream at each."""
    past = _past(cache.position, reset, config.context)

    def attend(_: Any, cached: tuple[Array, Array], query: Array, *new: Array) -> tuple[Any, Any, Array]:
        keys, values = (jnp.concatenate(both, axis=1) for both in zip(cached, new, strict=True))
        return (), (kept(keys), kept(values)), attention(query, keys, values, past.mask)

    def kept(x: Array) -> Array:
        chosen = jnp.take_along_axis(x, past.source[..., None, None], axis=1)
        return jnp.where(past.filled[..., None, None], chosen, 0.0)

    x = _placed(config, params, linear(params["embed"], obs), past.position)
    by_layer = jnp.moveaxis(cache.key, 1, 0), jnp.moveaxis(cache.value, 1, 0)
    x, _, cached = run_blocks(config, params["blocks"], x.swapaxes(0, 1), past.position.T, attend, of_blocks=by_layer)
    keys, values = (jnp.moveaxis(each, 0, 1) for each in cached)
    features = normalized(config, params["norm"], x.swapaxes(0, 1)).astype(jnp.float32)
    return Cache(keys, values, past.position[-1] + 1), features


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
