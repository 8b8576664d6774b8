"""Why the KL term: what a policy writes when nothing keeps it near the model that it started from.

    python experiments/kl_ablation.py

The reward is the sentiment of the built-in grammar: positive adjectives minus negative ones. The language has at most
two adjectives for a noun, so the highest reward is outside of it. One sweep over beta and seeds; each policy is judged
on prompts that no method has seen, by the exact parser.

Writes kl_ablation.json (config, every seed's figures), kl_ablation.md (table and samples) and kl_ablation.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from common import markdown, pyplot, text_of, write_report
from language import Judged, base_model, judged, written

import pgjax
from pgjax.alignment import PROMPTS, REWARDS, RLHF, LanguageModel
from pgjax.reporting.statistics import interquartile_mean


@dataclasses.dataclass(frozen=True)
class Options:
    betas: Annotated[tuple[float, ...], tyro.conf.arg(help="weights of the KL penalty")] = (0.0, 0.1, 0.3, 1.0, 3.0)
    seeds: Annotated[int, tyro.conf.arg(help="seeds per beta")] = 10
    completions: Annotated[int, tyro.conf.arg(help="completions to train on, per member")] = 8192
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def algorithm(start: LanguageModel, completions: int) -> RLHF:
    """Bold steps, so that what they can break breaks."""
    return RLHF(
        start,
        REWARDS.make("sentiment"),
        PROMPTS.make("grammar"),
        completions,
        learning_rate=1e-3,
        num_epochs=2,
    )


def main(options: Options) -> None:
    start = base_model()
    rlhf = algorithm(start, options.completions)
    result = pgjax.sweep(rlhf, seeds=options.seeds, seed=100, beta=list(options.betas), progress=False)
    found = [
        judged(start.network, result.member(i).state.params["policy"], jax.random.key(1)) for i in range(len(result))
    ]
    rows = Judged(*(np.array(x, np.float32).reshape(len(options.betas), -1) for x in zip(*found, strict=True)))
    kl = np.asarray(result.scores["kl_to_start"], np.float32).reshape(len(options.betas), -1)
    before = Judged(*map(float, judged(start.network, start.params, jax.random.key(1))))
    samples = {}
    for i, beta in enumerate(options.betas):
        policy = dataclasses.replace(start, params=result.member(i * options.seeds).state.params["policy"])
        samples[f"beta = {beta:g}"] = written(policy, jax.random.key(2), 3)
    table = table_of(options, rows, kl, before) + samples_of({"before": written(start, jax.random.key(2), 3)} | samples)
    figures = {"before": before._asdict(), "betas": options.betas, "kl_to_start": kl, **rows._asdict()}
    write_report(options.out, table, rlhf, figures)
    plot(options, rows, kl, before, options.out / "kl_ablation.png")


def table_of(options: Options, rows: Judged, kl: np.ndarray, before: Judged) -> str:
    lines = [["before", f"{before.sentiment:.2f}", f"{100 * before.grammatical:.1f}", "0", f"{before.length:.1f}"]]
    for i, beta in enumerate(options.betas):
        columns = (rows.sentiment[i], 100 * rows.grammatical[i], kl[i], rows.length[i])
        lines.append(
            [f"{beta:g}", *(text_of(interquartile_mean(x), d) for x, d in zip(columns, (2, 1, 2, 1), strict=True))]
        )
    header = ["beta", "reward (sentiment)", "grammatical, %", "KL to the start, nats", "length, tokens"]
    return (
        f"{options.seeds} seeds each, {options.completions:,} completions, interquartile means with 95 % intervals.\n\n"
        + markdown(header, lines)
    )


def samples_of(samples: dict[str, list[str]]) -> str:
    blocks = [f"{name}:\n\n" + "".join(f"    {text}\n" for text in texts) for name, texts in samples.items()]
    return "\n" + "\n".join(blocks)


def plot(options: Options, rows: Judged, kl: np.ndarray, before: Judged, path: Path) -> None:
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    columns: list[tuple[Any, Any, str]] = [
        (rows.sentiment, before.sentiment, "reward: positive minus negative adjectives"),
        (100 * rows.grammatical, 100 * before.grammatical, "grammatical, %"),
    ]
    for panel, (values, start, label) in zip(panels, columns, strict=True):
        for i, beta in enumerate(options.betas):
            panel.plot(np.sqrt(np.maximum(kl[i], 0.0)), values[i], ".", label=f"beta = {beta:g}")
        panel.axhline(start, color="gray", linewidth=0.8, linestyle=":")
        panel.set(xlabel="square root of the KL to the start, nats", ylabel=label)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
