"""What DDPG, TD3 and SAC reach with their presets, and PPO after as many steps: ten seeds each, evaluated greedily.

    python experiments/off_policy_learning.py                       # every row
    python experiments/off_policy_learning.py --envs Pendulum-v1    # of some environments; others stay as they are
    python experiments/off_policy_learning.py --rejax ENV/bin/python --sb3 ENV/bin/python

PPO has its preset, cut to the steps of the longest of the others where that is shorter. The presets were tuned on seeds
from 1000 on; the seeds reported here are 0, 1, 2, ... The last two arguments are Pythons of environments of their own,
in which rejax and Stable-Baselines3 train SAC and TD3 on Pendulum with the same networks, steps and batches, and
constant learning rates, beside ours (the docstrings of `benchmarks/peers/rejax_returns.py` and `sb3_returns.py` say
what to install). TD3's exploring noise is 0.1 in units of the torque in theirs; ours is 0.1 of half its range, twice
that.

Writes off_policy_learning.json (configs, every seed's figures and curves), off_policy_learning.md and
off_policy_learning.png.
"""

import dataclasses
import json
import subprocess
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import Band, band, draw_band, markdown, pyplot, text_of, write_report

import pgjax
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config
from pgjax.running.presets import table

GOALS = {
    ("ddpg", "Pendulum-v1"): -180.0,
    ("td3", "Pendulum-v1"): -150.0,
    ("sac", "Pendulum-v1"): -150.0,
    ("ddpg", "MountainCarContinuous-v0"): 90.0,
    ("td3", "MountainCarContinuous-v0"): 90.0,
}
METHODS = ("ddpg", "td3", "sac", "discrete-sac")
PEERS_ENV = "Pendulum-v1"
ENVS = tuple(dict.fromkeys(env_id for name in METHODS for env_id in table()[name]))


@dataclasses.dataclass(frozen=True)
class Options:
    envs: Annotated[tuple[str, ...], tyro.conf.arg(help="environments to train on")] = ENVS
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each")] = 10
    episodes: Annotated[int, tyro.conf.arg(help="evaluation episodes per seed")] = 2048
    rejax: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with rejax")] = None
    sb3: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with Stable-Baselines3")] = None
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def trained(algorithm: Any, options: Options) -> dict[str, Any]:
    """The returns of all seeds, their curves in training, and what it took."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # budgets that are no whole number of iterations
        result = pgjax.sweep(algorithm, seeds=options.seeds, episodes=options.episodes, progress=False)
    return {
        "returns": np.asarray(result.scores["return_mean"]),
        "curves": result.curves["return_mean"],
        "steps": result.steps[0],
        "episodes": options.episodes,
        "config": to_config(algorithm),
    }


def start_peers(options: Options) -> dict[str, tuple[dict[str, Any], subprocess.Popen[str]]]:
    """Processes that train with the settings of our presets for Pendulum, and these settings."""
    scripts = {"rejax": (options.rejax, "rejax_returns.py"), "Stable-Baselines3": (options.sb3, "sb3_returns.py")}
    started = {}
    for name in ("sac", "td3"):
        algorithm = pgjax.tuned(name, PEERS_ENV)
        settings = {
            "algorithm": name,
            "env": PEERS_ENV,
            "hidden": algorithm.critic.hidden,
            "steps": algorithm.total_steps,
            "warmup": algorithm.warmup,
            "batch_size": algorithm.batch_size,
            "learning_rate": float(algorithm.learning_rate),
            "noise_std": float(getattr(algorithm, "noise_std", 0.0)),
            "seeds": options.seeds,
            "episodes": options.episodes,
        }
        for peer, (python, script) in scripts.items():
            if python and PEERS_ENV in options.envs:
                path = Path(__file__).parent / "benchmarks" / "peers" / script
                command = [str(python), str(path), "--settings", json.dumps(settings)]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                started[f"{name} of {peer}"] = settings, process
    return started


def of_peer(settings: dict[str, Any], process: subprocess.Popen[str]) -> dict[str, Any]:
    """What such a process has found."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    found = json.loads(output.splitlines()[-1])
    return {"returns": np.array(found["returns"]), "settings": settings} | {
        "episodes": settings["episodes"],
        "versions": found["versions"],
    }


def row(key: str, each: dict[str, Any]) -> list[str]:
    """The line of what was found of a method on an environment."""
    name, _, env_id = key.partition(" on ")
    returns, goal = np.asarray(each["returns"]), GOALS.get((name, env_id))
    steps = each["steps"][-1] if "steps" in each else each["settings"]["steps"]
    figures = [f"{steps:,}", text_of(interquartile_mean(returns), 1), f"{returns.min():.1f}"]
    return [env_id, name, *figures, "" if goal is None else f"{goal:g}", str(each.get("episodes", 128))]


def main(options: Options) -> None:
    kept = options.out / "off_policy_learning.json"
    before: dict[str, dict[str, Any]] = json.loads(kept.read_text())["found"] if kept.exists() else {}
    found = {key: each for key, each in before.items() if key.partition(" on ")[2] not in options.envs}
    peers = start_peers(options)
    for env_id in options.envs:
        of_env = {name: pgjax.tuned(name, env_id) for name in METHODS if env_id in table()[name]}
        longest = max(algorithm.total_steps for algorithm in of_env.values())
        ppo = pgjax.tuned("ppo", env_id)
        for name, algorithm in (of_env | {"ppo": dataclasses.replace(ppo, total_steps=longest)}).items():
            found[f"{name} on {env_id}"] = trained(algorithm, options)
            print(row(f"{name} on {env_id}", found[f"{name} on {env_id}"]), flush=True)
    for name, (settings, process) in peers.items():
        found[f"{name} on {PEERS_ENV}"] = of_peer(settings, process)
    found = dict(sorted(found.items(), key=lambda item: ENVS.index(item[0].partition(" on ")[2])))
    header = ["environment", "algorithm", "env steps", "return", "lowest seed", "goal", "episodes"]
    text = (
        f"{options.seeds} seeds each, greedy episodes of each after the last step; interquartile means with 95 % "
        f"intervals.\n\n{markdown(header, [row(key, each) for key, each in found.items()], 2)}\n"
        "The peers' TD3 explores with half the noise of ours, and their learning rates are constant.\n"
    )
    write_report(options.out, text, None, {"found": found})
    plot(options, found)


def plot(options: Options, found: dict[str, dict[str, Any]]) -> None:
    envs = [env_id for env_id in ENVS if any(key.endswith(f" on {env_id}") for key in found)]
    columns = min(3, len(envs))
    shape = -(-len(envs) // columns), columns
    size = 4.0 * columns, 3.0 * shape[0]
    figure, panels = pyplot().subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for panel in list(panels.flat)[len(envs) :]:
        panel.remove()
    for env_id, panel in zip(envs, panels.flat, strict=False):
        for i, name in enumerate((*METHODS, "ppo")):
            each = found.get(f"{name} on {env_id}")
            if each:
                curves, steps = band(np.asarray(each["curves"], float)), np.asarray(each["steps"])
                known = np.isfinite(curves.interquartile_mean)  # points in which an episode ended
                style = {"color": "black" if name == "ppo" else f"C{i}", "linewidth": 1}
                draw_band(panel, steps[known], Band(*(x[known] for x in curves)), name, **style)
        panel.set(title=env_id, xlabel="env steps", ylabel="return in training")
        panel.xaxis.set_major_formatter(pyplot().matplotlib.ticker.EngFormatter(sep=""))
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(options.out / "off_policy_learning.png", dpi=100)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
