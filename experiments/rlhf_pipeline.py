"""The whole pipeline on the built-in grammar: pretraining, fine-tuning, a reward model, PPO with a KL penalty.

    python experiments/rlhf_pipeline.py

Each stage starts from the one before and is timed, its compilation apart. Models are judged on prompts that no stage
has seen by what made the language: its exact parser, and the sentiment that the preferences are drawn from. The reward
model has seen preferences only.

Writes rlhf_pipeline.json (configs and figures), rlhf_pipeline.md (table and samples) and rlhf_pipeline.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from common import markdown, pyplot, write_report
from language import fine_tuning, judged, pretraining, written

import pgjax
from pgjax.alignment import PREFERENCES, PROMPTS, RLHF, LanguageModel, RewardModel
from pgjax.alignment.learned_rewards import EnsembleOptions, of_members
from pgjax.running.config import to_config


@dataclasses.dataclass(frozen=True)
class Options:
    seed: Annotated[int, tyro.conf.arg(help="seed of every stage")] = 0
    beta: Annotated[float, tyro.conf.arg(help="weight of the KL penalty")] = 0.1
    pairs: Annotated[int, tyro.conf.arg(help="preferences to train the reward model on")] = 16_384
    completions: Annotated[int, tyro.conf.arg(help="completions to train the policy on")] = 16_384
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    algorithm: Any
    result: pgjax.Result
    scores: dict[str, float]
    model: LanguageModel | None
    """None where the stage leaves the language model as it was."""


def stage(name: str, algorithm: Any, seed: int) -> Stage:
    result = pgjax.run(algorithm, seed, progress=False)
    evaluate = jax.jit(type(algorithm).evaluate, static_argnums=3)
    scores = {name: float(x) for name, x in evaluate(algorithm, result.state, jax.random.key(seed), 512).items()}
    model = algorithm.language_model(result.state) if hasattr(algorithm, "language_model") else None
    return Stage(name, algorithm, result, scores, model)


def stages(options: Options) -> list[Stage]:
    lm = stage("pretraining", pretraining(), options.seed)
    sft = stage("fine-tuning", fine_tuning(lm.model), options.seed)
    preferences = PREFERENCES.make("grammar", examples=8192)
    rm = stage("reward model", RewardModel(sft.model, preferences, options.pairs, batch_size=64), options.seed)
    params, reference = jax.tree.map(lambda x: x[None], (rm.result.state.params, rm.result.state.reference))
    reward = of_members(sft.model.network, sft.model.tokenizer, params, reference, EnsembleOptions())
    prompts = PROMPTS.make("grammar")
    rlhf = RLHF(sft.model, reward, prompts, options.completions, beta=options.beta, learning_rate=5e-4, num_epochs=2)
    return [lm, sft, rm, stage("PPO", rlhf, options.seed)]


def main(options: Options) -> None:
    found = stages(options)
    judgements = [s.model and judged(s.model.network, s.model.params, jax.random.key(1)) for s in found]
    lines = []
    for s, judgement in zip(found, judgements, strict=True):
        seconds = [f"{x:.1f}" for x in (s.result.seconds_compile, s.result.seconds_run)]
        by_rules = [f"{100 * judgement.grammatical:.1f}", f"{judgement.sentiment:.2f}"] if judgement else ["", ""]
        scores = ", ".join(f"{name} {value:.2f}" for name, value in s.scores.items())
        lines.append([s.name, scores, f"{s.result.steps:,} {s.algorithm.unit}", *seconds, *by_rules])
    header = ["stage", "held-out scores", "trained on", "compile, s", "run, s", "grammatical, %", "sentiment"]
    texts = [written(found[i].model, jax.random.key(2), 6) for i in (1, 3)]
    samples = [
        [prompt, before, after.partition(" | ")[2]]
        for (prompt, _, before), after in zip((text.partition(" | ") for text in texts[0]), texts[1], strict=True)
    ]
    total = sum(s.result.seconds_compile + s.result.seconds_run for s in found)
    table = markdown(header, lines, 2) + f"\nAll stages: {total:.0f} s.\n\n"
    table += markdown(["prompt", "before PPO", "after"], samples, 3)
    figures = {
        "stages": {s.name: {"config": to_config(s.algorithm), "scores": s.scores} for s in found},
        "seconds": {s.name: [s.result.seconds_compile, s.result.seconds_run] for s in found},
        "judged": {s.name: j._asdict() for s, j in zip(found, judgements, strict=True) if j},
        "samples": samples,
    }
    write_report(options.out, table, found[-1].algorithm, figures)
    plot(found, options.out / "rlhf_pipeline.png")


def plot(found: list[Stage], path: Path) -> None:
    plt = pyplot()
    figure, panels = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
    drawn = (
        {"loss": "nats per token"},
        {"loss": "nats per token"},
        {"accuracy": "accuracy"},
        {"reward": "reward", "kl_to_start": "KL, nats"},
    )
    for panel, s, metrics in zip(panels, found, drawn, strict=True):
        for metric, label in metrics.items():
            curve = s.result.metrics[metric]
            steps = (np.arange(curve.size) + 1) * s.algorithm.steps_per_iteration
            window = max(1, curve.size // 50)
            smooth = np.convolve(curve, np.ones(window) / window, "valid")
            panel.plot(steps[window - 1 :], smooth, label=label)
        panel.set(title=s.name, xlabel=s.algorithm.unit, ylabel=", ".join(metrics.values()))
    panels[-1].legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
