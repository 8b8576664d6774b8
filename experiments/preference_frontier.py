"""All methods on the task whose best policies are known: the frontier of reward against KL divergence.

    python experiments/preference_frontier.py

The task is that of `exact_frontier.py`: completions of six of six words, all of which can be enumerated, a Markov chain
as the start, a count as the reward. RLHF, GRPO without a standard deviation, RLOO and online DPO sample completions and
are told their reward; DPO is given pairs of completions of the start, whose preferences are drawn from Bradley-Terry
on the same reward, and KTO single ones, called good with probability sigmoid(r - mean r). Beta means the same
everywhere, pi*(y) = pi_ref(y) exp(r(y) / beta) / Z, but for two that are drawn beside it and not expected there: GRPO
divided by the standard deviation, which makes beta larger or smaller by it, and KTO, whose value saturates.

Every policy is evaluated over all completions. Writes preference_frontier.json (configs, every seed's figures),
preference_frontier.md (table) and preference_frontier.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import exact_frontier
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, text_of, write_report
from exact_frontier import COMPLETIONS, REF_LOG_PROB, REWARD, TOKENIZER, Found, T, evaluated, optimum, sampling, train

from pgjax import alignment
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

BATCH = 256


@dataclasses.dataclass(frozen=True)
class Options:
    betas: Annotated[tuple[float, ...], tyro.conf.arg(help="weights of the KL term, descending")] = (
        exact_frontier.Options.betas
    )
    seeds: Annotated[int, tyro.conf.arg(help="seeds per weight")] = exact_frontier.Options.seeds
    iterations: Annotated[int, tyro.conf.arg(help="of methods that sample, of 256 completions")] = 120
    pairs: Annotated[int, tyro.conf.arg(help="preferences that DPO learns from; KTO, twice as many answers")] = 32_768
    epochs: Annotated[int, tyro.conf.arg(help="passes over them")] = 4
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def draws(num: int, seed: int) -> np.ndarray:
    """Completions of the start, as indices."""
    probability = np.exp(REF_LOG_PROB)
    return np.random.default_rng(seed).choice(len(probability), size=num, p=probability / probability.sum())


def preferences(num: int) -> list[dict[str, Any]]:
    """Pairs of different completions of the start; the first is preferred with probability sigmoid(r - r')."""
    first, second = draws(2 * num, 0).reshape(2, num)
    uniform = np.random.default_rng(1).random(num)
    first_wins = uniform < 1.0 / (1.0 + np.exp(REWARD[second] - REWARD[first]))
    chosen, rejected = np.where(first_wins, first, second), np.where(first_wins, second, first)
    return [
        {"prompt": "", "chosen": COMPLETIONS[a].tolist(), "rejected": COMPLETIONS[b].tolist()}
        for a, b in zip(chosen, rejected, strict=True)
        if a != b
    ]


def labels(num: int) -> list[dict[str, Any]]:
    """Completions of the start, good with probability sigmoid(r - mean r)."""
    drawn = draws(num, 2)
    good = np.random.default_rng(3).random(num) < 1.0 / (1.0 + np.exp(REWARD[drawn].mean() - REWARD[drawn]))
    return [
        {"prompt": "", "completion": COMPLETIONS[a].tolist(), "label": bool(label)}
        for a, label in zip(drawn, good, strict=True)
    ]


def algorithms(options: Options) -> dict[str, Any]:
    start, iterations = exact_frontier.reference(), options.iterations
    fixed = {"batch_size": BATCH, "learning_rate": 3e-3, "max_grad_norm": 0.5}
    limits = {"max_completion": T, "too_long": "cut", "held_out": 0}
    pairs = alignment.PREFERENCES.of(preferences(options.pairs), **limits)
    answers = alignment.LABELS.of(labels(2 * options.pairs), **limits)
    unscaled = {"scale": "none", "aggregate": "constant"}
    return {
        "RLHF (PPO)": exact_frontier.rlhf(iterations),
        "GRPO, no std": sampling(alignment.GRPO, iterations, **unscaled),
        "RLOO": sampling(alignment.RLOO, iterations),
        "online DPO": sampling(alignment.OnlineDPO, iterations),
        "DPO": alignment.DPO(start, pairs, options.epochs * options.pairs, **fixed),
        "GRPO, std": sampling(alignment.GRPO, iterations, aggregate="constant"),
        "KTO": alignment.KTO(start, answers, 2 * options.epochs * options.pairs, **fixed),
    }


def table(options: Options, found: dict[str, Found]) -> str:
    header = ["beta", "E[r]", "KL", "share of the frontier, %", "share of the objective, %"]
    rows = []
    for name, figures in found.items():
        for i, beta in enumerate(options.betas):
            shares = (100 * x[i] for x in (figures.of_frontier, figures.of_objective))
            columns = [(figures.reward[i], 3), (figures.kl[i], 3), *((x, 1) for x in shares)]
            rows.append([name, f"{beta:g}", *(text_of(interquartile_mean(x), digits) for x, digits in columns)])
    best = ", ".join(f"{optimum(b)[0]:.3f} at {optimum(b)[1]:.3f} (beta {b:g})" for b in options.betas)
    above = max(figures.above_frontier.max() for figures in found.values())
    return (
        f"Interquartile means of {options.seeds} seeds with 95 % intervals. The best policies have E[r] of {best} nats "
        f"of KL.\n\n{markdown(['', *header], rows)}\nE[r] less the frontier is {above:.1e} at most.\n"
    )


def plot(options: Options, found: dict[str, Found], path: Path) -> None:
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    rewards, kls = np.array([optimum(beta) for beta in np.geomspace(0.1, 100, 400)]).T
    panel.plot(kls, rewards, color="black", linewidth=1, label="frontier")
    for (name, figures), marker in zip(found.items(), "osD^vxP", strict=True):
        panel.plot(figures.kl.ravel(), figures.reward.ravel(), marker, markersize=4, alpha=0.6, label=name)
    best_rewards, best_kls = np.array([optimum(beta) for beta in options.betas]).T
    panel.plot(best_kls, best_rewards, "+", color="black", markersize=14, label="optimum of each beta")
    panel.set(xlabel="KL(pi, pi_ref) of a completion", ylabel="E[r]", xlim=(-0.2, 12))
    panel.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    methods, found = algorithms(options), {}
    keys = jax.vmap(jax.random.key)(jnp.arange(options.seeds))
    for name, algorithm in methods.items():
        policies = train(algorithm, options.betas, keys)
        found[name] = evaluated(algorithm.model.network, policies, options.betas)
        print(name, found[name].of_objective.mean(axis=1).round(3), found[name].kl.mean(axis=1).round(3), flush=True)
    configs = {name: to_config(algorithm) for name, algorithm in methods.items()}
    for config in configs.values():
        config["hyperparameters"]["beta"] = options.betas
    figures = {"configs": configs, "tokenizer": TOKENIZER.words, "found": {k: x._asdict() for k, x in found.items()}}
    write_report(options.out, table(options, found), None, figures)
    plot(options, found, options.out / "preference_frontier.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
