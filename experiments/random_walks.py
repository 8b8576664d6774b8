"""Random walks: a language model of walks on trlx's graph becomes one of shortest walks.

    python experiments/random_walks.py

The task is that of trlx's example: 21 nodes, edges with probability 0.1 drawn with seed 1002, 1,000 walks at random of
up to 10 nodes to learn to walk from, and as reward the optimality of a walk to node "a", 1 for a shortest one. RLHF
(PPO), GRPO and RLOO then learn from their own walks, from all 20 nodes; beside them the best of eight walks of the
start.

Writes random_walks.json (configs, every seed's curve), random_walks.md and random_walks.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import band, draw_band, markdown, pyplot, text_of, write_report
from language import new_model, trained

import pgjax
from pgjax.alignment import GRPO, PROMPTS, REWARDS, RLHF, RLOO, SFT, LanguageModel, walks
from pgjax.alignment.data import COMPLETIONS
from pgjax.alignment.tokenizers import TOKENIZERS
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

TOKENIZER = TOKENIZERS.make("walks")
STARTS = [{"prompt": word} for word in walks.WORDS[1:]]
CHOICES = 8


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each")] = 10
    walks: Annotated[int, tyro.conf.arg(help="walks that the model learns to walk from")] = 1000
    epochs: Annotated[int, tyro.conf.arg(help="passes over them")] = 32
    completions: Annotated[int, tyro.conf.arg(help="walks of its own that each method learns from")] = 16_000
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def start_model(options: Options) -> tuple[LanguageModel, SFT]:
    new = new_model(TOKENIZER, 64, 2, 16)
    data = COMPLETIONS.of(walks.completions(options.walks, 0), held_out=0)
    sft = SFT(new, data, options.epochs * options.walks, batch_size=50, learning_rate=1e-3)
    return trained(sft)[0], sft


def main(options: Options) -> None:
    start, sft = start_model(options)
    prompts, reward = PROMPTS.of(STARTS * 4, held_out=0), REWARDS.make("walks")
    common = {"max_tokens": 10, "batch_size": 80, "learning_rate": 1e-3, "beta": 0.001, "eos_penalty": 0.0}
    common |= {"num_minibatches": 2, "num_epochs": 2}
    methods = {
        "RLHF (PPO)": RLHF(start, reward, prompts, options.completions, **common),
        "GRPO": GRPO(start, reward, prompts, options.completions, **common),
        "RLOO": RLOO(start, reward, prompts, options.completions, **common),
    }
    keys = jax.random.split(jax.random.key(1), options.seeds)
    some = methods["GRPO"]

    def optimality(algorithm: Any, policy: Any, key: jax.Array) -> jax.Array:
        """Of `CHOICES` walks from every start, `[choices, starts]`."""
        rows = algorithm.data.train
        prompt = type(algorithm.prompts(algorithm.init(key)))(
            rows.prompt[: len(STARTS)], rows.prompt_mask[: len(STARTS)]
        )

        def of_one(key: jax.Array) -> jax.Array:
            return algorithm.rewarded(prompt, algorithm.sampled(policy, prompt, key))

        return jax.lax.map(of_one, jax.random.split(key, CHOICES))

    drawn = np.asarray(jax.jit(jax.vmap(lambda key: optimality(some, start.params, key)))(keys))
    before = {"the start": drawn.mean(axis=(1, 2)), f"best of {CHOICES}": drawn.max(axis=1).mean(axis=1)}
    rows = [[name, text_of(interquartile_mean(found), 3), "", ""] for name, found in before.items()]
    curves, after = {}, {}
    for name, algorithm in methods.items():

        def member(key: jax.Array, algorithm: Any = algorithm) -> tuple[Any, Any]:
            state, metrics = pgjax.train(algorithm, key)
            found = optimality(algorithm, algorithm.policy(state.params), jax.random.fold_in(key, 1))
            return metrics["reward"], (jnp.mean(found), jnp.mean(found == 1.0), metrics["kl_to_start"][-1])

        curves[name], figures = jax.tree.map(np.asarray, jax.jit(jax.vmap(member))(keys))
        after[name] = dict(zip(("optimality", "shortest", "kl"), figures, strict=True))
        rows.append([name, *(text_of(interquartile_mean(x), 3) for x in figures)])
        print(rows[-1], flush=True)
    table = (
        f"{options.seeds} seeds each, {options.completions:,} walks; interquartile means with 95 % intervals.\n\n"
        + markdown(["", "optimality", "share of shortest walks", "KL to the start, nats"], rows)
    )
    configs = {"start": to_config(sft)} | {name: to_config(algorithm) for name, algorithm in methods.items()}
    write_report(options.out, table, None, {"configs": configs, "before": before, "after": after, "curves": curves})
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        draw_band(panel, some.batch_size * np.arange(1, curve.shape[1] + 1), band(curve), name, linewidth=1)
    panel.set(xlabel="walks", ylabel="optimality", ylim=(0, 1))
    panel.legend(frameon=False)
    figure.savefig(options.out / "random_walks.png", dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
