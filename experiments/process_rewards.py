"""Process against outcome reward: running sums, judged step by step or at their end.

    python experiments/process_rewards.py

The base model learns sums of four numbers in steps, "3 + 9 + 4 + 1 =" and "2 ; 6 ; 7", and is then fine-tuned on some
of which half have a wrong step, a quarter a step too few and a quarter one too many, so that it is right part of the
time. Two models that know right sums learn from the same judged answers: a process reward model from every step, an
outcome reward model from the last one alone. GRPO then improves the base model by either, by the exact checkers of
outcomes and of steps, and by the sum of the probabilities of steps, under which a longer chain can earn more. What
counts is the exact checker, on prompts that no stage has seen, and how many completions it takes to be right nine times
of ten in training. The exact outcome also under each aggregation of tokens: whether wrong answers grow.

Writes process_rewards.json (configs, every seed's figures and curves), process_rewards.md and process_rewards.png.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import band, draw_band, markdown, pyplot, text_of, write_report
from language import new_model, trained

import pgjax
from pgjax.alignment import (
    COMPLETIONS,
    GRPO,
    PROMPTS,
    REWARDS,
    SFT,
    STEPS,
    LanguageModel,
    ProcessRewardModel,
    sums,
)
from pgjax.alignment.learned_rewards import ProcessReward, StepOptions
from pgjax.alignment.tokenizers import TOKENIZERS
from pgjax.core.hyperparameters import pytree
from pgjax.core.metrics import Mean
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

TOKENIZER = TOKENIZERS.make("sums")
LEARNING_RATE = 1e-4
"""Of GRPO, which leaves what it knows with more where nothing keeps it near its start."""
ACCURACY = 0.9
"""That the number of completions is counted to."""


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each")] = 10
    completions: Annotated[int, tyro.conf.arg(help="completions that each learns from")] = 8192
    examples: Annotated[int, tyro.conf.arg(help="right sums that the base model learns from")] = 32_768
    epochs: Annotated[int, tyro.conf.arg(help="passes over them")] = 12
    wrong_examples: Annotated[int, tyro.conf.arg(help="partly wrong ones that it learns from then")] = 8192
    judged: Annotated[int, tyro.conf.arg(help="judged answers that reward models learn from")] = 32_768
    judged_epochs: Annotated[int, tyro.conf.arg(help="passes over them")] = 16
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


@pytree
class Watched(GRPO):
    """GRPO that also reports whether sums are right, how many steps they have beside those that are due, and how long
    wrong ones are."""

    def statistics(self, rollout: Any, score: Any) -> Any:
        tokens, _, mask = rollout.completion
        prompt = rollout.prompt.tokens
        steps = jnp.sum(mask & ((tokens == sums.SEPARATOR) | (tokens == sums.EOS)), axis=1)
        due = jnp.sum(prompt < sums.MODULUS, axis=1) - 1
        right = sums.is_right(tokens, mask, prompt)
        wrong_length = Mean(jnp.sum((1.0 - right) * jnp.sum(mask, axis=1)), jnp.sum(1.0 - right))
        found = {"right": jnp.mean(right), "extra_steps": jnp.mean(steps - due), "wrong_length": wrong_length}
        return super().statistics(rollout, score) | found


def of_four(make: Callable[..., list[dict[str, Any]]], num: int, seed: int) -> list[dict[str, Any]]:
    """Records of sums of four numbers: a quarter of all that are made."""
    records = [record for record in make(5 * num, seed) if record["prompt"].count("+") == 3]
    return records[:num]


def base_models(options: Options) -> tuple[LanguageModel, LanguageModel, dict[str, SFT]]:
    """What clean sums have taught, and then partly wrong ones, with what trained them."""
    new = new_model(TOKENIZER, 128, 2, 32)
    clean = COMPLETIONS.of(of_four(sums.completions, options.examples, 0))
    learning = SFT(new, clean, options.epochs * options.examples, batch_size=128, learning_rate=1e-3, weight_decay=0.1)
    records = [
        {"prompt": record["prompt"], "completion": " ; ".join(record["completions"])}
        for record in of_four(sums.steps, options.wrong_examples, 3)
    ]
    knowing = trained(learning)[0]
    tuning = SFT(knowing, COMPLETIONS.of(records), len(records), batch_size=128, learning_rate=3e-4)
    return knowing, trained(tuning)[0], {"clean sums": learning, "partly wrong sums": tuning}


def judge_of(start: LanguageModel, options: Options, outcome_only: bool) -> tuple[ProcessReward, Any, float]:
    """The reward of a model of steps, its config, and its accuracy on held-out steps, at the best of four learning
    rates: one in two goes on after a quarter of the run, and again after a half."""
    data = STEPS.of(of_four(sums.steps, options.judged, 1), separator=";")
    algorithm = ProcessRewardModel(
        start,
        data,
        options.judged_epochs * options.judged,
        outcome_only=outcome_only,
        batch_size=128,
        weight_decay=0.1,
    )
    rates = [1e-4, 1.5e-4, 2e-4, 3e-4]
    search = pgjax.SuccessiveHalving(eta=2, rungs=2)
    found = pgjax.sweep(algorithm, learning_rate=rates, search=search, episodes=4096, progress=False)
    best = found.best().members[0]
    algorithm, state = found.algorithms[best], found.member(best).state
    params, ends = jax.tree.map(lambda x: x[None], (state.params, state.ends))
    reward = ProcessReward(start.network, TOKENIZER, params, ends, outcome_only)
    return reward, to_config(algorithm), float(found.scores["accuracy"][best])


def judged(algorithm: Any, seeds: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Exact scores on held-out prompts of all seeds, and the curves in training, a point for every iteration."""
    result = pgjax.sweep(algorithm, seeds=seeds, points=algorithm.num_iterations, progress=False)
    exact = dataclasses.replace(algorithm, reward=REWARDS.make("sums"))
    evaluate = jax.jit(lambda state: exact.evaluate(state, state.key, 1024))
    scores = [evaluate(result.member(i).state) for i in range(seeds)]
    return (
        {name: np.array([each[name] for each in scores]) for name in scores[0]},
        {name: result.curves[name] for name in ("right", "extra_steps", "wrong_length")},
    )


def completions_to(curve: np.ndarray, batch: int, window: int = 8) -> np.ndarray:
    """Of each seed, the completions until the mean over a window of batches reaches `ACCURACY`; infinite if never."""
    smooth = np.apply_along_axis(lambda x: np.convolve(x, np.ones(window) / window, "valid"), -1, curve)
    reached = smooth >= ACCURACY
    return np.where(reached.any(axis=1), batch * (reached.argmax(axis=1) + window), np.inf)


def main(options: Options) -> None:
    knowing, start, taught = base_models(options)
    process, process_config, process_accuracy = judge_of(knowing, options, outcome_only=False)
    outcome, outcome_config, outcome_accuracy = judge_of(knowing, options, outcome_only=True)
    print(f"steps judged rightly: {process_accuracy:.3f}, outcomes: {outcome_accuracy:.3f}", flush=True)
    grpo = Watched(
        start,
        outcome,
        PROMPTS.of(of_four(sums.completions, 8192, 7)),
        options.completions,
        max_tokens=10,
        batch_size=256,
        learning_rate=LEARNING_RATE,
        beta=0.0,
    )
    rewards = {
        "process reward model": process,
        "outcome reward model": outcome,
        "sum over its steps": dataclasses.replace(process, options=StepOptions("sum")),
        "exact steps": REWARDS.make("sums-steps"),
        "exact outcome": REWARDS.make("sums"),
    }
    exact = dataclasses.replace(grpo, reward=REWARDS.make("sums"))
    methods = {name: dataclasses.replace(grpo, reward=reward) for name, reward in rewards.items()}
    methods |= {
        f"exact outcome, by {how}": dataclasses.replace(exact, aggregate=how) for how in ("sequence", "constant")
    }
    evaluate = jax.jit(type(exact).evaluate, static_argnums=3)
    before = evaluate(exact, exact.init(jax.random.key(0)), jax.random.key(0), 1024)
    rows = [["the base model", f"{float(before['reward']):.3f}", "", "", "", f"{float(before['length']):.2f}"]]
    found, curves = {}, {}
    for name, method in methods.items():
        found[name], curves[name] = judged(method, options.seeds)
        needed = completions_to(curves[name]["right"], grpo.batch_size)
        extra = curves[name]["extra_steps"][:, -8:].mean(axis=1)
        wrong = np.nanmean(curves[name]["wrong_length"][:, -8:], axis=1)
        reached = f"{np.isfinite(needed).sum()} of {options.seeds}"
        some = text_of(interquartile_mean(needed), 0) if np.isfinite(needed).all() else f"reached by {reached}"
        rows.append(
            [
                name,
                text_of(interquartile_mean(found[name]["reward"]), 3),
                some,
                text_of(interquartile_mean(extra), 2),
                text_of(interquartile_mean(wrong), 2),
                text_of(interquartile_mean(found[name]["length"]), 2),
            ]
        )
        print(rows[-1], flush=True)
    header = [
        "",
        "right, held out",
        f"completions to {ACCURACY:.0%} right",
        "steps beyond those due",
        "tokens of wrong answers",
        "tokens",
    ]
    table = (
        f"{options.seeds} seeds each, {options.completions:,} completions; interquartile means with 95 % intervals. "
        f"The process reward model judges {process_accuracy:.1%} of held-out steps rightly, the outcome reward model "
        f"{outcome_accuracy:.1%} of outcomes.\n\n{markdown(header, rows)}"
    )
    figures = {
        "configs": {name: to_config(sft) for name, sft in taught.items()}
        | {"process": process_config, "outcome": outcome_config}
        | {name: to_config(method) for name, method in methods.items()},
        "before": {name: float(x) for name, x in before.items()},
        "found": found,
        "curves": curves,
    }
    write_report(options.out, table, None, figures)
    plot(options, curves, grpo.batch_size)


def plot(options: Options, curves: dict[str, Any], batch: int) -> None:
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, curve in curves.items():
        for panel, metric in zip(panels, ("right", "extra_steps"), strict=True):
            steps = batch * np.arange(1, curve[metric].shape[1] + 1)
            draw_band(panel, steps, band(curve[metric]), name, linewidth=1)
    panels[0].set(xlabel="completions", ylabel="share of right sums in training", ylim=(0, 1))
    panels[1].set(xlabel="completions", ylabel="steps beyond those due")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(options.out / "process_rewards.png", dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
