"""KTO where good answers are rare or bad ones are: with and without weights, and DPO as the control.

    python experiments/kto_imbalance.py

On the task whose completions can all be enumerated (`exact_frontier.py`), answers of the start are called good if their
reward is above its median, and are drawn so that 50, 90 or 10 % of them are good. KTO learns from them with equal
weights, and with the smaller class weighted up to the larger one (Ethayarajh et al., 2024, section 4.2); DPO is given
as many pairs as the smaller class has answers, each of a good one over a bad one. Ten seeds with data of their own,
evaluated over all completions.

Writes kto_imbalance.json (configs, every seed's figures) and kto_imbalance.md.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import exact_frontier
import jax
import numpy as np
import tyro
from common import markdown, text_of, with_rows, write_report
from exact_frontier import COMPLETIONS, REF_LOG_PROB, REWARD, T, evaluated

import pgjax
from pgjax import alignment
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

SHARES = (0.5, 0.9, 0.1)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each")] = 10
    answers: Annotated[int, tyro.conf.arg(help="labelled answers of each")] = 8192
    steps: Annotated[int, tyro.conf.arg(help="gradient steps")] = 256
    beta: Annotated[float, tyro.conf.arg(help="weight of the KL divergence")] = 0.5
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def drawn(rng: np.random.Generator, num: int, good: bool) -> np.ndarray:
    """Good or bad completions of the start, as indices."""
    probability = np.exp(REF_LOG_PROB)
    order = np.argsort(REWARD, kind="stable")
    median = REWARD[order][np.searchsorted(np.cumsum(probability[order]), 0.5 * probability.sum())]
    probability = np.where((median < REWARD) == good, probability, 0.0)
    return rng.choice(len(probability), size=num, p=probability / probability.sum())


def algorithms(options: Options, share: float) -> dict[str, Any]:
    """KTO and DPO, with the rows of all seeds in their data, `[seeds * n, ...]`."""
    start, limits = exact_frontier.reference(), {"max_completion": T, "too_long": "cut", "held_out": 0}
    num_good = round(share * options.answers)
    answers, pairs = [], []
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        good, bad = drawn(rng, num_good, True), drawn(rng, options.answers - num_good, False)
        rows = [(i, True) for i in good] + [(i, False) for i in bad]
        answers += [{"prompt": "", "completion": COMPLETIONS[i].tolist(), "label": label} for i, label in rows]
        pairs += [
            {"prompt": "", "chosen": COMPLETIONS[a].tolist(), "rejected": COMPLETIONS[b].tolist()}
            for a, b in zip(good, bad, strict=False)
        ]
    fields = {"batch_size": 256, "learning_rate": 1e-3, "beta": options.beta, "max_grad_norm": 0.5}
    steps = 256 * options.steps
    kto = alignment.KTO(start, alignment.LABELS.of(answers, **limits), steps, **fields)
    ratio = max(share, 1.0 - share) / min(share, 1.0 - share)
    weights = {"desirable_weight": ratio} if share < 0.5 else {"undesirable_weight": ratio}
    found = {"KTO": kto}
    if share != 0.5:
        found["KTO, weighted"] = dataclasses.replace(kto, **weights)
    found["DPO"] = alignment.DPO(start, alignment.PREFERENCES.of(pairs, **limits), steps, **fields)
    return found


def over_seeds(algorithm: Any, options: Options) -> Any:
    rows = jax.tree.map(lambda x: x.reshape(options.seeds, -1, *x.shape[1:]), algorithm.data.train)

    def member(key: jax.Array, rows: Any) -> Any:
        mine = with_rows(algorithm, rows)
        return mine.language_model(pgjax.train(mine, key)[0]).params

    policies = jax.jit(jax.vmap(member))(jax.random.split(jax.random.key(0), options.seeds), rows)
    return evaluated(algorithm.model.network, policies, (options.beta,))


def main(options: Options) -> None:
    rows, found, configs = [], {}, {}
    for share in SHARES:
        for name, algorithm in algorithms(options, share).items():
            figures = over_seeds(algorithm, options)
            label = f"{share:.0%} good, {name}"
            found[label], configs[label] = figures._asdict(), to_config(algorithm)
            columns = [(figures.reward[0], 3), (figures.kl[0], 3), (100 * figures.of_frontier[0], 1)]
            rows.append([label, *(text_of(interquartile_mean(x), digits) for x, digits in columns)])
            print(rows[-1], flush=True)
    probability = np.exp(REF_LOG_PROB)
    start = float(probability @ REWARD / probability.sum())
    table = (
        f"{options.seeds} seeds with {options.answers:,} answers of their own, {options.steps} gradient steps, beta "
        f"{options.beta:g}; interquartile means with 95 % intervals. The start has E[r] = {start:.3f}.\n\n"
        + markdown(["", "E[r]", "KL", "share of the frontier, %"], rows)
    )
    write_report(options.out, table, None, {"configs": configs, "found": found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
