"""Runs that are killed at random moments, again and again, until they end: is anything lost, is any bit different?

    python experiments/kills.py                      # 1,000 kills over all algorithms, populations and sweeps: an hour
    python experiments/kills.py --kills 60 --cases ppo pbt

Every case trains in a process of its own that gets a SIGKILL at a random moment, from its start to 1.25 times the time
that the undisturbed one took. The same call continues it, and is killed again; the first that ends before its kill ends
the run, which must then equal the undisturbed one in every line of its files and every bit of its final states. So it
goes round the cases until there have been enough kills.

Writes kills.json (also when each kill came, and what it left) and kills.md, anew after each round.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from common import markdown, write_report

import pgjax
from pgjax import alignment
from pgjax.algorithms import algorithm_class

ITERATIONS = 600
SEEDS = 4


@dataclasses.dataclass(frozen=True)
class Options:
    kills: Annotated[int, tyro.conf.arg(help="how many, over all cases")] = 1000
    cases: Annotated[tuple[str, ...], tyro.conf.arg(help="some of the cases; default all")] = ()
    at_once: Annotated[int, tyro.conf.arg(help="cases that run at the same time")] = 2
    add: Annotated[bool, tyro.conf.arg(help="to the kills in the results, of the same code")] = False
    seed: Annotated[int, tyro.conf.arg(help="of the random moments")] = 0
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def in_environment(name: str, **fields: Any) -> Any:
    """A small algorithm on CartPole or Pendulum."""
    cls: Any = algorithm_class(name)
    limit: Any = {"max_steps_in_episode": 8} if name == "reinforce" else {}  # which needs whole episodes
    env = pgjax.make("Pendulum-v1" if name in ("ddpg", "td3", "sac", "trpo") else "CartPole-v1", **limit)
    if hasattr(cls, "num_critics"):
        replay: Any = {"critic": pgjax.MLPCritic(hidden=(8,)), "buffer_size": 2000, "warmup": 64, "batch_size": 16}
        squash = name != "discrete-sac"
        network = pgjax.MLP(hidden=(8,), shared_torso=True, squash=squash, state_dependent_std=squash)
        return cls(env, network, num_envs=4, num_rounds=8, total_steps=ITERATIONS * 32, **replay)
    declared = {field.name for field in dataclasses.fields(cls)}
    small = {"num_minibatches": 2, "value_minibatches": 2}
    fields = {name: value for name, value in small.items() if name in declared} | fields
    return cls(
        env, **{"network": pgjax.MLP(hidden=(8,)), "num_envs": 4, "num_steps": 8} | fields, total_steps=ITERATIONS * 32
    )


def over_tokens(name: str, base: Path) -> Any:
    """A small method that starts from the language model in `base`."""
    steps: Any = {"batch_size": 8, "total_steps": 8 * ITERATIONS}
    cls: Any = algorithm_class(name)
    if name == "lm":
        tokenizer = alignment.TOKENIZERS.make("grammar")
        network = alignment.Transformer(
            width=8, layers=1, num_heads=2, num_groups=1, mlp_width=8, context=20, vocab=tokenizer.vocab
        )
        data = alignment.TEXTS.make("grammar", examples=64, length=8)
        steps["total_steps"] *= 8
        return cls(data=data, tokenizer=tokenizer, network=network, warmup=2, **steps)
    model = alignment.language_model(base)
    if name in ("rlhf", "grpo", "rloo", "online-dpo"):
        prompts = alignment.PROMPTS.make("grammar", examples=64)
        groups = {"group_size": 4} if name in ("grpo", "rloo") else {}
        reward = alignment.REWARDS.make("sentiment")
        return cls(model, reward, prompts, max_tokens=5, num_minibatches=2, **groups, **steps)
    kinds = {"sft": alignment.COMPLETIONS, "kto": alignment.LABELS}
    return cls(model, kinds.get(name, alignment.PREFERENCES).make("grammar", examples=64), warmup=2, **steps)


LONGEST = 1.25
"""Of the undisturbed time, which a kill waits for at most."""
EVERY = ITERATIONS // 20
ENVIRONMENTS = ("reinforce", "vpg", "a2c", "npg", "trpo", "ppo", "ddpg", "td3", "sac", "discrete-sac")
TOKENS = ("lm", "sft", "reward-model", "rlhf", "dpo", "kto", "grpo", "rloo", "online-dpo")


def trained(algorithm: Any, directory: Path, seeds: int | None = None) -> None:
    pgjax.run(algorithm, 0, directory, seeds=seeds, checkpoint_every=EVERY, episodes=8, sinks=("csv",), progress=False)


def swept(directory: Path, search: Any = None, members_at_once: int | None = None) -> None:
    rates: Any = [1e-4, 3e-4, 1e-3, 3e-3]
    how: Any = {"search": search, "members_at_once": members_at_once, "points": 40, "checkpoint_every": 2}
    pgjax.sweep(in_environment("ppo"), 2, directory=directory, episodes=8, progress=False, learning_rate=rates, **how)


CASES: dict[str, Callable[[Path, Path], None]] = {
    "ppo-seeds": lambda run, base: trained(in_environment("ppo"), run, SEEDS),
    "sac-seeds": lambda run, base: trained(in_environment("sac"), run, SEEDS),
    "sweep": lambda run, base: swept(run),
    "batches": lambda run, base: swept(run, members_at_once=4),
    "pbt": lambda run, base: swept(run, pgjax.PBT(every=5)),
    "halving": lambda run, base: swept(run, pgjax.SuccessiveHalving(eta=2, rungs=3)),
    **{name: lambda run, base, name=name: trained(in_environment(name), run) for name in ENVIRONMENTS},
    "ppo-gru": lambda run, base: trained(in_environment("ppo", network=pgjax.GRU(hidden=(8,), memory_size=8)), run),
    **{name: lambda run, base, name=name: trained(over_tokens(name, base), run) for name in TOKENS},
}


def start(case: str, directory: Path, base: Path) -> subprocess.Popen[str]:
    """The case in a process; the same call starts and continues it."""
    command = [sys.executable, __file__, "--child", case, str(directory), str(base)]
    environment = os.environ | {"XLA_FLAGS": "", "XDG_CACHE_HOME": str(base.parent / "cache")}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finished(case: str, directory: Path, base: Path) -> float:
    """Seconds of a process that nobody disturbs.

    Raises:
        SystemExit: it failed.
    """
    began = time.perf_counter()
    child = start(case, directory, base)
    _, shown = child.communicate()
    if child.returncode:
        raise SystemExit(f"{case} in {directory} ended with {child.returncode}:\n{shown}")
    return time.perf_counter() - began


def same(a: Path, b: Path) -> list[str]:
    """Which files of rows, and which leaves of final states, are not equal bit by bit."""
    names = ("metrics.jsonl", "metrics.csv", "evaluations.jsonl", "members.csv")
    here = [name for name in names if (a / name).exists()]
    wrong = [name for name in here if (a / name).read_bytes() != (b / name).read_bytes()]
    states = [leaves(run) for run in (a, b)]
    return wrong + [name for name, x in states[0].items() if x.tobytes() != states[1][name].tobytes()]


def leaves(directory: Path) -> dict[str, np.ndarray]:
    if (directory / "sweep.json").exists():
        result: Any = pgjax.resume_sweep(directory, progress=False)
        tree = result.states, result.curves, result.schedules, result.scores, result.failed, result.reached
    else:
        tree = pgjax.load(directory).state
    found = {}
    for path, x in jax.tree.leaves_with_path(tree):
        is_key = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(x) if is_key else x)
    return found


def one_run(found: dict[str, Any], at: Path, base: Path, rng: random.Random) -> None:
    """A run of a case from its start to its end, with the kills on the way."""
    case = found["case"]
    whole, run = at / case / "whole", at / case / "killed"
    if not whole.exists():
        finished(case, at / case / "compiling", base)
        found["seconds"] = finished(case, whole, base)
    shutil.rmtree(run, ignore_errors=True)
    while True:
        moment = rng.uniform(0.0, LONGEST * found["seconds"])
        child = start(case, run, base)
        try:
            _, shown = child.communicate(timeout=moment)
            break
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.communicate()
            kept = sorted(int(p.name) for p in run.glob("checkpoints/*") if p.name.isdigit())
            found["kills"].append({"second": moment, "newest_checkpoint": kept[-1] if kept else 0})
    found["runs"] += 1
    found["wrong"] += [shown] if child.returncode else same(whole, run)


def main(options: Options) -> None:
    cases = options.cases or tuple(CASES)
    found = {case: {"case": case, "seconds": 0.0, "runs": 0, "wrong": [], "kills": []} for case in cases}
    before = options.out / "kills.json"
    if options.add and before.exists():
        found |= {each["case"]: each for each in json.loads(before.read_text())["found"] if each["case"] in found}
    rngs = {case: random.Random(f"{case} {each['runs']} {options.seed}") for case, each in found.items()}
    with tempfile.TemporaryDirectory() as at, ThreadPoolExecutor(options.at_once) as pool:
        base = Path(at) / "base"
        trained(dataclasses.replace(over_tokens("lm", base), total_steps=64 * EVERY), base)
        while sum(len(each["kills"]) for each in found.values()) < options.kills:
            list(pool.map(lambda case: one_run(found[case], Path(at), base, rngs[case]), cases))
            write(options, list(found.values()))
    if any(each["wrong"] for each in found.values()):
        sys.exit("not every run survived")


def write(options: Options, found: list[dict[str, Any]]) -> None:
    kills = sum(len(case["kills"]) for case in found)
    rows = [
        [case["case"], str(len(case["kills"])), str(case["runs"]), ", ".join(case["wrong"]) or "nothing"]
        for case in found
    ]
    table = markdown(["case", "kills", "runs that ended", "wrong in them"], rows)
    write_report(options.out, f"{table}\n{kills} kills.\n", None, {"found": found})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        from pgjax.commands.flags import enable_compilation_cache

        enable_compilation_cache()
        CASES[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(tyro.cli(Options, description=__doc__))
