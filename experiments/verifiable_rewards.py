"""Rewards that code checks: from a model that adds right three times of ten to one that does nearly always.

    python experiments/verifiable_rewards.py

The base model is fine-tuned on sums modulo 29 of which 60 % are wrong, so that it has seen what right answers are and
gives them about 30 % of the time. GRPO is then told 1 or 0 for each answer to the sums of nine tenths of the 841 pairs,
and judged on those that no stage has seen: pass@1, and pass@8, how often one of eight answers is right. Variants change
one field of it each; RLHF (PPO) and RLOO learn from as many answers.

Writes verifiable_rewards.json (configs, every seed's figures), verifiable_rewards.md and verifiable_rewards.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from common import band, draw_band, markdown, pyplot, text_of, write_report
from language import new_model, trained

import pgjax
from pgjax.alignment import COMPLETIONS, GRPO, PROMPTS, REWARDS, RLHF, RLOO, SFT, LanguageModel, addition
from pgjax.alignment.tokenizers import TOKENIZERS
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

TOKENIZER = TOKENIZERS.make("addition")
PAIRS = [{"prompt": f"{a} + {b} ="} for a in range(addition.MODULUS) for b in range(addition.MODULUS)]


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each")] = 10
    answers: Annotated[int, tyro.conf.arg(help="answers that each learns from")] = 196_608
    examples: Annotated[int, tyro.conf.arg(help="sums that the base model is fine-tuned on")] = 32_768
    epochs: Annotated[int, tyro.conf.arg(help="passes over them")] = 24
    wrong: Annotated[float, tyro.conf.arg(help="share of wrong ones among them")] = 0.6
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def base_model(options: Options) -> tuple[LanguageModel, SFT]:
    start = new_model(TOKENIZER, 128, 1, 8)
    data = COMPLETIONS.of(addition.completions(options.examples, 0, options.wrong))
    steps = options.epochs * options.examples
    sft = SFT(start, data, steps, batch_size=256, learning_rate=2e-3, weight_decay=0.3)
    return trained(sft)[0], sft


def methods(start: LanguageModel, answers: int) -> dict[str, Any]:
    prompts, reward = PROMPTS.of(PAIRS), REWARDS.make("addition")
    common = {"max_tokens": 2, "batch_size": 256, "learning_rate": 5e-4, "beta": 0.0, "passes": 8, "eos_penalty": 0.0}
    grpo = GRPO(start, reward, prompts, answers, **common)
    variants = {
        "no std": {"scale": "none"},
        "aggregate = sequence": {"aggregate": "sequence"},
        "aggregate = constant": {"aggregate": "constant"},
        "clip higher": {"clip_eps_high": 0.4},
        "sequence ratio": {"ratio": "sequence"},
        "equal groups left out": {"skip_equal": True},
    }
    found: dict[str, Any] = {"GRPO": grpo}
    found |= {f"GRPO, {name}": dataclasses.replace(grpo, **fields) for name, fields in variants.items()}
    found["RLOO"] = RLOO(start, reward, prompts, answers, **common)
    found["RLHF (PPO)"] = RLHF(start, reward, prompts, answers, num_epochs=1, **common)
    return found


def judged(algorithm: Any, seeds: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Scores on held-out sums of all seeds, and the curves of the reward."""

    def member(key: jax.Array) -> tuple[Any, Any]:
        state, metrics = pgjax.train(algorithm, key)
        return algorithm.evaluate(state, key, len(PAIRS)), metrics["reward"]

    scores, curves = jax.jit(jax.vmap(member))(jax.random.split(jax.random.key(1), seeds))
    return {name: np.asarray(x) for name, x in scores.items()}, np.asarray(curves)


def main(options: Options) -> None:
    start, sft = base_model(options)
    algorithms = methods(start, options.answers)
    grpo = algorithms["GRPO"]
    before = jax.jit(type(grpo).evaluate, static_argnums=3)(
        grpo, grpo.init(jax.random.key(0)), jax.random.key(0), len(PAIRS)
    )
    print({name: round(float(x), 3) for name, x in before.items()}, flush=True)
    scores, curves, rows = {}, {}, []
    columns = ["pass@1", "pass@8", "kl_to_start", "entropy"]
    rows.append(["the base model", *(f"{float(before[name]):.3f}" for name in columns), ""])
    for name, algorithm in algorithms.items():
        scores[name], curves[name] = judged(algorithm, options.seeds)
        lowest = f"{scores[name]['pass@1'].min():.3f}"
        rows.append([name, *(text_of(interquartile_mean(scores[name][x]), 3) for x in columns), lowest])
        print(rows[-1], flush=True)
    held_out = grpo.data.held_out.prompt.shape[0]
    table = (
        f"{options.seeds} seeds each, {options.answers:,} answers, judged on {held_out} sums that no stage has seen; "
        "interquartile means with 95 % intervals.\n\n"
        + markdown(["", "pass@1", "pass@8", "KL to the base, nats", "entropy per token", "lowest pass@1"], rows)
    )
    figures = {
        "configs": {"base": to_config(sft)} | {name: to_config(x) for name, x in algorithms.items()},
        "before": {name: float(x) for name, x in before.items()},
        "scores": scores,
        "curves": curves,
    }
    write_report(options.out, table, None, figures)
    plot(options, curves, grpo.batch_size)


def plot(options: Options, curves: dict[str, np.ndarray], batch: int) -> None:
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, curve in curves.items():
        draw_band(panel, batch * np.arange(1, curve.shape[1] + 1), band(curve), name, linewidth=1)
    panel.set(xlabel="answers", ylabel="share of right answers in training", ylim=(0, 1))
    panel.legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(options.out / "verifiable_rewards.png", dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
