"""Optuna proposes, one compiled program evaluates: TPE over PPO's coefficients on CartPole, a batch of trials at once.

    python experiments/optuna_search.py
    python experiments/optuna_search.py --num-trials 96      # goes on with the same study

The study is kept in a sqlite file; the same command continues it after a stop, and only reports if it is complete.
Writes optuna_search.json (config and every trial), optuna_search.md (the ten best trials) and optuna_search.png (the
value of each trial and the best so far).
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optuna
import tyro
from common import markdown, pyplot, write_report

import pgjax
from pgjax.running.config import to_config

AXES = {
    "learning_rate": pgjax.log_uniform(1e-5, 1e-1),
    "ent_coef": pgjax.log_uniform(1e-4, 1e-1),
    "gae_lambda": pgjax.uniform(0.8, 1.0),
    "clip_eps": pgjax.uniform(0.05, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Options:
    study: Annotated[Path, tyro.conf.arg(help="file of the study")] = Path("runs/optuna.db")
    num_trials: Annotated[int, tyro.conf.arg(help="trials of the whole study")] = 48
    batch_size: Annotated[int, tyro.conf.arg(help="trials trained together")] = 16
    seeds: Annotated[int, tyro.conf.arg(help="seeds per trial")] = 2
    total_steps: Annotated[int, tyro.conf.arg(help="environment steps per member")] = 131_072
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def open_study(path: Path, config: dict[str, Any]) -> optuna.Study:
    """The study in a file, new or kept; one that holds other trials than `config` describes is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name="ppo on CartPole-v1", direction="maximize", load_if_exists=True
    )
    # A batch is asked for before any of it is told: a trial under way counts as a bad one, so that they spread out.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), constant_liar=True)
    if study.user_attrs.setdefault("config", config) != config:
        raise SystemExit(f"{path} holds a study of another config: choose another --study")
    study.set_user_attr("config", config)
    return study


def trial_row(rank: int, trial: Any) -> list[str]:
    return [str(rank), str(trial.number), *(f"{trial.params[name]:.4g}" for name in AXES), f"{trial.value:.2f}"]


def plot(trials: list[Any], batch_size: int, path: Path) -> None:
    numbers, values = np.array([trial.number for trial in trials]), np.array([trial.value for trial in trials])
    figure, panel = pyplot().subplots(figsize=(7, 4), layout="constrained")
    for start in range(0, int(numbers.max()) + 1, batch_size):
        panel.axvline(start - 0.5, color="0.9", linewidth=0.8)
    panel.plot(numbers, values, "o", markersize=4, label="trial")
    panel.step(numbers, np.maximum.accumulate(values), where="post", color="tab:red", label="best so far")
    panel.set(xlabel=f"trial (trained in batches of {batch_size})", ylabel="evaluated return")
    panel.set_title("Optuna's TPE on CartPole-v1", fontsize=10)
    panel.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ppo = pgjax.tuned("ppo", "CartPole-v1", total_steps=options.total_steps)
    study = open_study(options.study, to_config(ppo) | {"seeds": options.seeds})
    before, start = len(study.trials), time.perf_counter()
    pgjax.optuna_search(ppo, study, options.num_trials, options.batch_size, options.seeds, **AXES)
    seconds, new = time.perf_counter() - start, len(study.trials) - before
    trials = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if not trials:
        raise SystemExit("no trial has a value: all of them failed")
    ranked = sorted(trials, key=lambda trial: -trial.value)
    header = ["rank", "trial", *AXES, "evaluated return"]
    table = markdown(header, [trial_row(i + 1, trial) for i, trial in enumerate(ranked[:10])], 0) + (
        f"\n{len(study.trials)} trials ({len(study.trials) - len(trials)} failed) of {options.seeds} seeds and "
        f"{options.total_steps:,} env steps each; the return is the mean over seeds.\n"
    )
    report = {
        "seeds": list(range(options.seeds)),
        "batch_size": options.batch_size,
        "axes": {name: str(axis) for name, axis in AXES.items()},
        "best": {"value": study.best_value, "params": study.best_params},
        "trained_now": {"trials": new, "seconds": seconds},
        "trials": [{"number": t.number, "value": t.value, "params": t.params} for t in study.trials],
    }
    write_report(options.out, table, ppo, report)
    print(f"{new} trials now, {seconds:.1f} s" if new else "the study was complete: nothing to train")
    print("best:", ", ".join(f"{name}={value:.4g}" for name, value in study.best_params.items()))
    plot(trials, options.batch_size, options.out / "optuna_search.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
