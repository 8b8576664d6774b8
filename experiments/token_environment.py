"""The same token environment, learned by `ppo` in an environment and by `rlhf` with beta = 0.

    python experiments/token_environment.py

Six tokens of an empty prompt, or fewer if the end of text comes first; the reward counts how often b follows a, three
times at most. As an environment an observation is the last token as one of 9, and the network a transformer over the
steps of the episode; as a language model the same transformer reads tokens. Both start near the uniform policy and take
the same gradient steps: the same losses, minibatches, learning rate, discount and lambda. What differs: a rollout of
the environment has 64 x 6 steps, in which shorter episodes are followed by others, and one of the language model 64
completions; and the embedding of the language model is also what it writes with.

Writes token_environment.json (configs and every curve), token_environment.md and token_environment.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import band, draw_band, markdown, pyplot, text_of, write_report

import pgjax
from pgjax.alignment import PROMPTS, RLHF, LanguageModel, Transformer
from pgjax.alignment.tokenizers import Words
from pgjax.core.algorithm import Key
from pgjax.core.hyperparameters import pytree
from pgjax.environments.base import Box, Discrete, TimeStep
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

TOKENIZER = Words(("a", "b", "c", "d", "e", "f"))
LENGTH, BATCH, MOST = 6, 64, 3.0
SHARED = {
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 1e-3,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "normalize_advantage": "minibatch",
}


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each")] = 10
    iterations: Annotated[int, tyro.conf.arg(help="of each")] = 100
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


class Written(NamedTuple):
    """The state of an episode."""

    last: jax.Array
    time: jax.Array


@pytree
class Tokens:
    """One token per step; the end of text ends the episode, and so does the last of `LENGTH` tokens."""

    name = "Tokens"
    observation_space = Box((TOKENIZER.vocab + 1,))
    action_space = Discrete(TOKENIZER.vocab)
    time_limit = LENGTH

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        state = Written(jnp.int32(TOKENIZER.vocab), jnp.int32(0))
        return state, self.observation(state)

    def step(self, key: Key, state: Any, action: jax.Array) -> TimeStep:
        reward = ((state.last == 0) & (action == 1)).astype(jnp.float32)
        state = Written(action.astype(jnp.int32), state.time + 1)
        ended = (action == TOKENIZER.eos) | (state.time == LENGTH)
        return TimeStep(state, self.observation(state), reward, ended, jnp.bool_(False))

    def observation(self, state: Written) -> jax.Array:
        return jax.nn.one_hot(state.last, TOKENIZER.vocab + 1)

    def received(self, action: jax.Array) -> jax.Array:
        return action


def count(tokens: jax.Array, mask: jax.Array, prompt: jax.Array) -> jax.Array:
    """The reward of the environment, token by token."""
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return ((before == 0) & (tokens == 1) & mask).astype(jnp.float32)


def algorithms(iterations: int) -> dict[str, Any]:
    network = Transformer(width=32, mlp_width=64, context=LENGTH + 1)
    ppo = pgjax.PPO(Tokens(), network, BATCH * LENGTH * iterations, num_envs=BATCH, num_steps=LENGTH, **SHARED)
    network = dataclasses.replace(network, vocab=TOKENIZER.vocab)
    start = LanguageModel(network, TOKENIZER, network.init_text(jax.random.key(0)))
    prompts = PROMPTS.of([{"prompt": ""}] * BATCH, held_out=0)
    rlhf = RLHF(
        start,
        count,
        prompts,
        BATCH * iterations,
        batch_size=BATCH,
        max_tokens=LENGTH,
        beta=0.0,
        eos_penalty=0.0,
        **SHARED,
    )
    return {"ppo": ppo, "rlhf, beta = 0": rlhf}


def curves(algorithm: Any, seeds: int) -> np.ndarray:
    """The mean reward of what was sampled, `[seeds, iterations]`."""
    _, metrics = jax.jit(jax.vmap(lambda key: pgjax.train(algorithm, key)))(jax.vmap(jax.random.key)(jnp.arange(seeds)))
    return np.asarray(metrics["return_mean" if isinstance(algorithm, pgjax.PPO) else "reward"])


def main(options: Options) -> None:
    both = algorithms(options.iterations)
    found = {name: curves(algorithm, options.seeds) for name, algorithm in both.items()}
    shown = [i for i in (1, 5, 10, 20, 40, 60, 80, 100, 150, 200) if i <= options.iterations]
    rows = [[name, *(text_of(interquartile_mean(x[:, i - 1])) for i in shown)] for name, x in found.items()]
    table = (
        f"Mean reward of what was sampled in iteration i, of {MOST:g} at most; interquartile means of {options.seeds} "
        "seeds with 95 % intervals.\n\n" + markdown(["", *(f"i = {i}" for i in shown)], rows)
    )
    configs = {name: to_config(algorithm) for name, algorithm in both.items()}
    write_report(options.out, table, None, {"configs": configs, "curves": found})
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, x in found.items():
        draw_band(panel, np.arange(options.iterations) + 1, band(x), name)
    panel.set(xlabel="iteration", ylabel="mean reward", ylim=(0, MOST))
    panel.legend(frameon=False)
    figure.savefig(options.out / "token_environment.png", dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
