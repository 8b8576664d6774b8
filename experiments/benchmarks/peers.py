"""pgjax beside peers that install from PyPI, on the CPU: training throughput, and the time to a solved CartPole agent.

    python experiments/benchmarks/peers.py
    python experiments/benchmarks/peers.py --quick      # a few iterations of everything, once

Each peer gets a virtual environment of its own; pgjax runs in the one that runs this. Every measurement is a process of
its own, and the peers take turns.

*Throughput*: PPO on the same gymnax environment with the same shapes, networks (2 x 64 tanh, actor and critic apart)
and hyperparameters, in pgjax, in rejax and, where it can, in Brax training. Compiling is timed apart from running, in
the first process of each peer, whose programs the others find in a cache. Also with evaluations during training, 128
episodes four times a run, played greedily in pgjax and with sampled actions in rejax.

*Solved*: seconds from the start of a process, imports and compiling included, until 32 complete episodes played
greedily return 475 on average. All evaluate every 16,384 env steps, and a run that has spent its hyperparameters' own
budget ends unsolved. Stable-Baselines3 and SBX train with rl-baselines3-zoo's hyperparameters; pgjax with those and
with its preset.

Writes peers.json (every measurement, versions, configs), peers.md (tables) and peers.png.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

import pgjax

sys.path.append(str(Path(__file__).parents[1]))
from common import markdown, pyplot, write_report

from pgjax.core.cores import count_cores

HERE = Path(__file__).with_suffix("")
CORES = count_cores()

REQUIREMENTS = {
    "rejax": ["rejax", "gymnax<1"],
    "brax": ["brax", "jax<0.10", "gymnax", "six"],
    "sb3": ["stable-baselines3"],
    "sbx": ["sbx-rl"],
}
NAMES = {"pgjax": "pgjax", "rejax": "rejax", "brax": "Brax", "sb3": "Stable-Baselines3", "sbx": "SBX"}
SCRIPTS = {"pgjax": "run_pgjax.py", "rejax": "run_rejax.py", "brax": "run_brax.py"} | dict.fromkeys(
    ["sb3", "sbx"], "run_sb3.py"
)
NOTES = [
    "Rejax 0.1.3 takes five values from an environment's step and gymnax 1.0 gives six, so rejax has the newest gymnax "
    "before 1.0. The dynamics are the same.",
    "Brax 0.14.2 calls jax.device_put_replicated, which jax 0.10 no longer has, so Brax has the newest jax before "
    "0.10. It steps gymnax's own Pendulum through a wrapper. Its train function takes one seed and compiles as it "
    "goes; its policies are continuous only, so it has no part in CartPole.",
    "pgjax returns the learning metrics of every iteration (KL, clip fraction, explained variance and more); rejax "
    "returns none. Both clip the value and keep the learning rate constant in the throughput part; rejax has an "
    "optimiser each for actor and critic and clips gradients by element, pgjax one optimiser and their norm.",
    "Stable-Baselines3 and SBX run with one torch thread: with two, Stable-Baselines3 was ten times slower whenever "
    "another process held a core.",
    "pgjax has no schedule for the clip range: with the zoo's hyperparameters it stays 0.2 where the zoo's falls to 0.",
    "Stable-Baselines3 and SBX step Gymnasium's CartPole, pgjax gymnax's. Their steps/s leave out their first "
    "iteration, pgjax's its compiling; all leave out evaluations.",
]

HYPERPARAMETERS = {
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
}
EVALUATIONS, EPISODES, CALLS = 4, 128, 2


def case(
    env: str, num_envs: int, num_steps: int, epochs: int, minibatches: int, seeds: int, iterations: int
) -> dict[str, Any]:
    shapes = dict(num_envs=num_envs, num_steps=num_steps, num_epochs=epochs, num_minibatches=minibatches)  # noqa: C408
    name = f"{env}, {num_envs} x {num_steps}, {seeds} seed{'s' * (seeds > 1)}"
    return {"name": name, "env": env, "seeds": seeds, "iterations": iterations, "shapes": shapes}


CASES = [
    case("CartPole-v1", 64, 128, 4, 4, seeds=1, iterations=48),
    case("CartPole-v1", 4, 128, 4, 4, seeds=1, iterations=200),
    case("CartPole-v1", 64, 128, 4, 4, seeds=8, iterations=12),
    case("Pendulum-v1", 100, 100, 10, 10, seeds=1, iterations=12),
    case("Pendulum-v1", 100, 100, 10, 10, seeds=8, iterations=4),
]

ZOO = {
    "policy": "MlpPolicy",
    "n_timesteps": 100_000,
    "n_envs": 8,
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 20,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "ent_coef": 0.0,
    "learning_rate": 1e-3,  # both of these fall linearly to 0
    "clip_range": 0.2,
}
ZOO_IN_PGJAX = {
    "total_steps": 100_096,  # whole iterations, as many as Stable-Baselines3 makes of 100,000 steps
    "num_envs": 8,
    "num_steps": 32,
    "num_epochs": 20,
    "num_minibatches": 1,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "ent_coef": 0.0,
    "learning_rate": 1e-3,
    "clip_eps": 0.2,
}
SOLVED: dict[str, Any] = {"env": "CartPole-v1", "every": 16_384, "episodes": 32, "threshold": 475.0}


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to train a CartPole agent."""

    label: str
    peer: str
    way: str
    hyperparameters: dict[str, Any]
    cached: bool = False


WAYS = {
    "pgjax": Way("pgjax, preset", "pgjax", "preset", {}),
    "pgjax_cached": Way("pgjax, preset, programs cached", "pgjax", "preset", {}, cached=True),
    "pgjax_zoo": Way("pgjax, zoo", "pgjax", "zoo", ZOO_IN_PGJAX),
    "sbx": Way("SBX, zoo", "sbx", "zoo", ZOO),
    "sb3": Way("Stable-Baselines3, zoo", "sb3", "zoo", ZOO),
}


@dataclasses.dataclass(frozen=True)
class Options:
    repetitions: Annotated[int, tyro.conf.arg(help="processes per throughput measurement, in turns")] = 5
    seeds: Annotated[int, tyro.conf.arg(help="seeds of every way to a solved agent, in turns")] = 5
    parts: Annotated[tuple[Literal["throughput", "solved"], ...], tyro.conf.arg(help="what is measured")] = (
        "throughput",
        "solved",
    )
    quick: Annotated[bool, tyro.conf.arg(help="a few iterations of everything, once, to see that it runs")] = False
    environments: Annotated[Path, tyro.conf.arg(help="where the peers' virtual environments are or will be")] = (
        Path.home() / ".cache/pgjax-peers"
    )
    pgjax_python: Annotated[Path, tyro.conf.arg(help="the interpreter that runs pgjax")] = Path(sys.executable)
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results/benchmarks")


# The peers' environments and processes.


def scrubbed(text: str) -> str:
    """What went wrong, without anything that has a slash in it: paths and addresses."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lstrip().startswith("ERROR")] or lines[-1:]
    return re.sub(r"\S*[/\\]\S*", "...", " ".join(errors)).strip()[:400]


def install(environment: Path, requirements: list[str]) -> str:
    """Make a virtual environment, or keep the one that has these requirements; what went wrong, or nothing."""
    marker = environment / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if marker.exists() and marker.read_text() == wanted:
        return ""
    print(f"installing {', '.join(requirements)}", file=sys.stderr, flush=True)
    venv.create(environment, clear=True, with_pip=True)
    pip = [str(python_of(environment)), "-m", "pip", "install", "--quiet", *requirements]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"pip: {scrubbed(done.stderr)}"
    marker.write_text(wanted)
    return ""


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def packages_of(python: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return dict(sorted(json.loads(done.stdout).items()))


class Peers:
    """The interpreters of pgjax and its peers, and why some of them are missing."""

    def __init__(self, options: Options) -> None:
        root = options.environments.absolute()
        self.failures = {peer: install(root / peer, required) for peer, required in REQUIREMENTS.items()}
        self.pythons = {peer: python_of(root / peer) for peer in REQUIREMENTS} | {"pgjax": options.pgjax_python}

    def run(self, peer: str, task: dict[str, Any], cache: str | None = None) -> dict[str, Any]:
        """A task in a process of its own: what was measured, or the reason why nothing was as `failure`."""
        if self.failures.get(peer):
            return {"failure": self.failures[peer]}
        environment = {
            name: x for name, x in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "PYTHONPATH")
        }
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if SCRIPTS[peer] == "run_sb3.py":
            environment["OMP_NUM_THREADS"] = "1"
        if cache:
            environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        launched = time.time()
        done = subprocess.run(
            [
                str(self.pythons[peer]),
                str(HERE / SCRIPTS[peer]),
                json.dumps(task | {"peer": peer, "launched": launched}),
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stderr, file=sys.stderr, flush=True)
            return {"failure": scrubbed(done.stderr)}
        return json.loads(done.stdout.splitlines()[-1]) | {"seconds_process": time.time() - launched}


# Throughput.


def peers_of(measured: dict[str, Any], evaluations: int) -> list[str]:
    brax_can = measured["env"] == "Pendulum-v1" and measured["seeds"] == 1 and not evaluations
    return ["pgjax", "rejax", *(["brax"] if brax_can else [])]


def compare_throughput(peers: Peers, options: Options, caches: str) -> list[dict[str, Any]]:
    """Per case, without and with evaluations: every peer's measurements. Its first process fills its cache."""
    compared = []
    for measured in CASES:
        iterations = EVALUATIONS if options.quick else measured["iterations"]
        steps = iterations * measured["shapes"]["num_envs"] * measured["shapes"]["num_steps"]
        for evaluations in (0, EVALUATIONS):
            task: dict[str, Any] = {
                "part": "throughput",
                "case": measured | {"iterations": iterations, "total_steps": steps},
                "evaluations": evaluations,
                "episodes": EPISODES,
                "calls": CALLS,
                "hyperparameters": HYPERPARAMETERS,
            }
            found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers_of(measured, evaluations)}
            for _ in range(1 if options.quick else options.repetitions):
                for peer, runs in found.items():
                    runs.append(peers.run(peer, task, f"{caches}/{peer}"))
                    print(f"{measured['name']}, {evaluations} evaluations, {peer}: {told(runs[-1])}", file=sys.stderr)
            compared.append(task["case"] | {"evaluations": evaluations, "peers": found})
    return compared


def told(run: dict[str, Any]) -> str:
    return run.get("failure") or f"{run['steps'] / np.median(run['seconds_run']):,.0f} steps/s"


def succeeded(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if "failure" not in run]


def rate(runs: list[dict[str, Any]]) -> float:
    """Median env steps per second over all calls; NaN where nothing was measured."""
    rates = [run["steps"] / seconds for run in succeeded(runs) for seconds in run["seconds_run"]]
    return float(np.median(rates)) if rates else np.nan


def middle(values: Iterable[float | None]) -> float:
    """The median, where None is a time that never came; NaN of nothing."""
    known = [np.inf if value is None else value for value in values]
    return float(np.median(known)) if known else np.nan


def throughput_summary(compared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per case, variant and peer."""
    rows = []
    for each in compared:
        for peer, runs in each["peers"].items():
            good = succeeded(runs)
            rows.append(
                {
                    "case": each["name"],
                    "evaluations": each["evaluations"],
                    "peer": peer,
                    "steps": good[0]["steps"] if good else None,
                    "steps_per_second": rate(runs),
                    "pgjax_over_peer": rate(each["peers"]["pgjax"]) / rate(runs),
                    "seconds_compile": good[0]["seconds_compile"] if good else np.nan,
                    "processes": len(good),
                    "failure": next((run["failure"] for run in runs if "failure" in run), None),
                }
            )
    return rows


# Solved.


def compare_solved(peers: Peers, options: Options) -> dict[str, list[dict[str, Any]]]:
    """Every way's runs, one per seed."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as cache:
        run = functools.partial(solve, peers, cache)
        for way in WAYS.values():
            if way.cached:
                run(way, seed=0, most=1)  # fills the cache
        for seed in range(1 if options.quick else options.seeds):
            for name, way in WAYS.items():
                found[name].append(run(way, seed, most=2 if options.quick else None))
                seconds = found[name][-1].get("seconds_solved")
                said = found[name][-1].get("failure") or ("not solved" if seconds is None else f"{seconds:.1f} s")
                print(f"{way.label}, seed {seed}: {said}", file=sys.stderr, flush=True)
    return found


def solve(peers: Peers, cache: str, way: Way, seed: int, most: int | None) -> dict[str, Any]:
    """One agent; `most` evaluations, by default as many as the hyperparameters' own budget has."""
    task = SOLVED | {
        "part": "solve",
        "way": way.way,
        "hyperparameters": way.hyperparameters,
        "seed": seed,
        "max_evaluations": most,
    }
    return peers.run(way.peer, task, cache if way.cached else None) | {"seed": seed}


def solved_summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians over seeds. A run that did not solve counts as never: medians of times may be infinite."""
    reference = middle(run["seconds_solved"] for run in succeeded(found["pgjax"]))
    summary = {}
    for name, runs in found.items():
        good = succeeded(runs)
        seconds = middle(run["seconds_solved"] for run in good)
        summary[name] = {
            "runs": len(good),
            "solved": sum(run["seconds_solved"] is not None for run in good),
            "seconds_solved": seconds,
            "times_pgjax": seconds / reference if np.isfinite(reference) else np.nan,
            "seconds_imports": middle(run["seconds_imports"] for run in good),
            "seconds_compile": middle(run["seconds_compile"] for run in good),
            "steps": middle(run["steps"] for run in good),
            "return": middle(run["return"] for run in good),
            "steps_per_second": middle(run["steps_per_second"] for run in good),
            "failure": next((run["failure"] for run in runs if "failure" in run), None),
        }
    return summary


# The report.


def figure(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:,.{digits}f}"


def throughput_table(rows: list[dict[str, Any]]) -> str:
    header = ["environment, envs x steps", "peer", "evaluations", "env steps", "steps/s", "pgjax / peer", "compile s"]
    lines = [
        [
            row["case"],
            NAMES[row["peer"]] + (f" (failed: {row['failure']})" if row["failure"] else ""),
            str(row["evaluations"] or "none"),
            figure(row["steps"], 0),
            figure(row["steps_per_second"], 0),
            figure(row["pgjax_over_peer"], 2),
            figure(row["seconds_compile"]),
        ]
        for row in rows
    ]
    return markdown(header, lines, 2)


def solved_table(summary: dict[str, dict[str, Any]]) -> str:
    header = [
        "CartPole-v1",
        "solved",
        "median seconds",
        "times pgjax",
        "of them imports",
        "compile",
        "env steps",
        "return",
        "steps/s in training",
    ]
    lines = [
        [
            WAYS[name].label + (f" (failed: {row['failure']})" if row["failure"] else ""),
            f"{row['solved']} of {row['runs']}",
            figure(row["seconds_solved"]),
            figure(row["times_pgjax"], 2),
            figure(row["seconds_imports"]),
            figure(row["seconds_compile"]),
            figure(row["steps"], 0),
            figure(row["return"]),
            figure(row["steps_per_second"], 0),
        ]
        for name, row in summary.items()
    ]
    return markdown(header, lines)


def make_table(rows: list[dict[str, Any]], summary: dict[str, dict[str, Any]], options: Options) -> str:
    parts = []
    if rows:
        parts += [
            throughput_table(rows),
            f"Medians of {1 if options.quick else options.repetitions} processes in turns with {CALLS} calls each, "
            f"{CORES} CPU cores. Env steps are those of all seeds that a call trained.\n",
        ]
    if summary:
        parts += [
            solved_table(summary),
            "Medians of whole processes; an unsolved run counts as never, and - is a median that never came or does "
            f"not apply.\nSolved: {SOLVED['episodes']} greedy episodes return {SOLVED['threshold']:.0f} on average, "
            f"looked at every {SOLVED['every']:,} env steps.\n",
        ]
    return "\n".join([*parts, *(f"- {note}" for note in NOTES), ""])


def plot(rows: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]], out: Path) -> None:
    drawn = [part for part in (rows, found) if part]
    picture, panels = pyplot().subplots(
        1, len(drawn), figsize=(7 * len(drawn), 4.6), layout="constrained", squeeze=False
    )
    remaining = list(panels[0])
    if rows:
        draw_throughput(remaining.pop(0), [row for row in rows if row["peer"] != "pgjax"])
    if found:
        draw_solved(remaining.pop(0), found)
    picture.savefig(out / "peers.png", dpi=110)


def draw_throughput(panel: Any, rows: list[dict[str, Any]]) -> None:
    labels = [
        f"{row['case']}\n{NAMES[row['peer']]}{', evaluating' if row['evaluations'] else ''}".replace("-v1", "")
        for row in rows
    ]
    ratios = np.nan_to_num([row["pgjax_over_peer"] for row in rows])
    colors = ["tab:orange" if row["peer"] == "brax" else "tab:blue" for row in rows]
    bars = panel.barh(labels, ratios, color=colors)
    panel.bar_label(bars, [f" {ratio:.2f}" for ratio in ratios])
    panel.axvline(1.0, color="black", linewidth=0.8)
    panel.invert_yaxis()
    panel.tick_params(axis="y", labelsize=7)
    panel.set_xlim(0, 1.15 * max(*ratios, 1.0))
    panel.set(title="env steps per second", xlabel="pgjax / peer")


def draw_solved(panel: Any, found: dict[str, list[dict[str, Any]]]) -> None:
    """A bar to the median and a dot per seed; a cross where a run ended unsolved."""
    ends = []
    for place, runs in enumerate(found.values()):
        good = succeeded(runs)
        seconds = middle(run["seconds_solved"] for run in good)
        panel.barh(place, seconds if np.isfinite(seconds) else 0.0, color="tab:blue", alpha=0.6)
        for run in good:
            solved = run["seconds_solved"] is not None
            ends.append(run["seconds_solved"] or run["evaluations"][-1]["seconds"])
            panel.plot(ends[-1], place, "." if solved else "x", color="black" if solved else "tab:red")
    panel.set_yticks(range(len(found)), [WAYS[name].label.replace(", ", ",\n") for name in found])
    panel.invert_yaxis()
    panel.set_xlim(0, 1.1 * max([*ends, 1.0]))
    panel.set(title="to a solved CartPole agent, whole process", xlabel="seconds (cross: ended unsolved)")


def command(options: Options) -> str:
    """As it was given, without paths."""
    numbers = {"repetitions": options.repetitions, "seeds": options.seeds}
    defaults = Options()
    given = [f"--{name} {value}" for name, value in numbers.items() if value != getattr(defaults, name)]
    if options.parts != defaults.parts:
        given.append(f"--parts {' '.join(options.parts)}")
    return " ".join(["python experiments/benchmarks/peers.py", *given, *(["--quick"] if options.quick else [])])


def main(options: Options) -> None:
    peers = Peers(options)
    with tempfile.TemporaryDirectory() as caches:
        compared = compare_throughput(peers, options, caches) if "throughput" in options.parts else []
    found = compare_solved(peers, options) if "solved" in options.parts else {}
    rows, summary = throughput_summary(compared), solved_summary(found) if found else {}
    preset = pgjax.tuned("ppo", "CartPole-v1")
    report = {
        "command": command(options),
        "cores": CORES,
        "packages": {
            peer: packages_of(python) for peer, python in peers.pythons.items() if not peers.failures.get(peer)
        },
        "failures": {peer: failure for peer, failure in peers.failures.items() if failure},
        "notes": NOTES,
        "throughput": {"hyperparameters": HYPERPARAMETERS, "summary": rows, "cases": compared},
        "solved": SOLVED
        | {
            "ways": {name: dataclasses.asdict(way) | {"runs": found.get(name, [])} for name, way in WAYS.items()},
            "summary": summary,
        },
    }
    write_report(options.out, make_table(rows, summary, options), preset, report)
    plot(rows, found, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
