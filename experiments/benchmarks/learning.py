"""Whether what made training faster kept the learning: many seeds of the tuned PPO before and after, each as one sweep.

    git worktree add before 801a98e                    # the last version before the speed-ups
    git -C before checkout 9886f24 -- experiments      # and this script for the modules it has
    PYTHONPATH=before python before/experiments/benchmarks/learning.py --version before
    python experiments/benchmarks/learning.py --version after
    python experiments/benchmarks/learning.py

The last command compares what the others wrote: interquartile means over seeds, with 95 % bootstrap intervals, of the
greedily evaluated return after training and of the area under the learning curve (the mean over the run of the return
of episodes in training), and the probability that a seed is better after than before. Writes learning-before.json,
learning-after.json (every figure and its config), learning.md and learning.png.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

sys.path.append(str(Path(__file__).parents[1]))
from common import band, draw_band, dumps, markdown, pyplot, text_of

import pgjax
from pgjax.reporting.statistics import interquartile_mean, probability_of_improvement
from pgjax.running.config import to_config, versions

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1")


@dataclasses.dataclass(frozen=True)
class Options:
    version: Annotated[
        Literal["before", "after"] | None, tyro.conf.arg(help="train as this one; by default compare both")
    ] = None
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each environment")] = 30
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results/benchmarks")


def train(options: Options) -> dict[str, Any]:
    found = {}
    for env in ENVIRONMENTS:
        ppo = pgjax.tuned("ppo", env)
        result = pgjax.sweep(ppo, options.seeds, progress=False)
        curves = result.curves["return_mean"]
        found[env] = {
            "config": to_config(ppo),
            "returns": result.scores["return_mean"],
            "areas": np.nanmean(curves, axis=1),
            "steps": result.steps[0],
            "curves": curves,
            "seconds_run": result.seconds_run,
        }
        print(f"{env}: {result.interquartile_mean()}, {result.seconds_run:.0f} s", file=sys.stderr, flush=True)
    return {"seeds": options.seeds, "versions": versions()} | found


def make_table(before: dict[str, Any], after: dict[str, Any]) -> str:
    rows = []
    for env in ENVIRONMENTS:
        for name, measure in {"returns": "evaluated return", "areas": "area under the curve"}.items():
            scores = [each[env][name] for each in (before, after)]
            better = probability_of_improvement([scores[1]], [scores[0]])
            rows.append([env, measure, *(text_of(interquartile_mean(x)) for x in scores), text_of(better)])
    header = ["environment", f"{before['seeds']} seeds", "before", "after", "P(after better than before)"]
    return markdown(header, rows, 2)


def plot(before: dict[str, Any], after: dict[str, Any], out: Path) -> None:
    figure, panels = pyplot().subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for panel, env in zip(panels, ENVIRONMENTS, strict=True):
        for label, each in {"before": before, "after": after}.items():
            curves = np.array(each[env]["curves"], float)
            draw_band(panel, np.array(each[env]["steps"]), band(curves), label)
        panel.set(title=env, xlabel="environment steps", ylabel="return of episodes in training")
        panel.legend()
    figure.savefig(out / "learning.png", dpi=110)


def main(options: Options) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    if options.version:
        (options.out / f"learning-{options.version}.json").write_text(dumps(train(options)) + "\n")
        return
    before, after = (json.loads((options.out / f"learning-{v}.json").read_text()) for v in ("before", "after"))
    table = make_table(before, after)
    (options.out / "learning.md").write_text(table)
    print(table)
    plot(before, after, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
