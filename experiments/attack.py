"""An attack: bad inputs, damaged files, links and pipes. What is refused well, what is raw, and what is wrong.

    python experiments/attack.py

Every field of every algorithm that acts in an environment, and every argument of `run`, is given values that it should
not take; every method of a network and an environment of one's own gives them. Every entry of the configs of a run and
of a sweep is edited. Then the files of both are damaged one by one, and they are loaded, resumed, listed and plotted.

- refused: our error, which names the field or the file; for files also a warning that goes with a whole result
- harmless: it was accepted, and for files the result is what it would have been
- raw: another exception reached the user
- wrong: a result that differs from that of the whole run, and nothing was said

Writes attack.json (every case that was raw or wrong) and attack.md.
"""

import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from common import markdown, write_report

import pgjax
from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.commands import cli
from pgjax.core.parts import kinds_of

VALUES: list[Any] = [
    *(None, "x", "", -1, 0, 2**40, -(2**40), 0.5, 1e300, float("nan"), float("inf"), -float("inf"), True),
    *([], {}, (1, "a"), np.zeros((2, 2)), np.array("a"), b"x", object(), 1j, [1, 2]),
]
EDITS: list[Any] = [None, "x", -1, 0, 7, 2**40, 1e300, True, [], {}, [1, "a"]]
"""What entries of configs are replaced with."""
OUTCOMES = ("refused", "harmless", "raw", "wrong")


@dataclasses.dataclass(frozen=True)
class Options:
    flips: Annotated[int, tyro.conf.arg(help="random flips in each file")] = 4
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


class Table:
    """Outcomes by what was attacked."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.cases: list[dict[str, str]] = []

    def note(self, what: str, case: str, outcome: str, said: str = "") -> None:
        self.counts.setdefault(what, dict.fromkeys(OUTCOMES, 0))[outcome] += 1
        if outcome in ("raw", "wrong"):
            self.cases.append({"what": what, "case": case, "outcome": outcome, "said": said[:300]})
            print(what, case, outcome, said[:200], flush=True)

    def attempt(self, what: str, case: str, action: Callable[[], str | None]) -> None:
        """`action` gives what is wrong with its result, None if nothing is."""
        with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("always")
            try:
                wrong = action()
            except (pgjax.InputError, OSError) as error:
                self.note(what, case, "refused", str(error))
                return
            except BaseException as error:
                self.note(what, case, "raw", f"{type(error).__name__}: {error}")
                return
        spoken = [str(w.message) for w in said if "damaged" in str(w.message) or "another run" in str(w.message)]
        self.note(what, case, "refused" if spoken else "wrong" if wrong else "harmless", wrong or "")


def algorithms() -> Iterator[tuple[str, Any]]:
    """Small ones of every class that acts in an environment, without memory or files."""
    for name in ALGORITHMS:
        cls = algorithm_class(name)
        if next(iter(kinds_of(cls))) == "env":
            env = pgjax.make("CartPole-v1" if name in ("discrete-sac", "ppo", "reinforce") else "Pendulum-v1")
            yield name, cls(env)


def attack_inputs(table: Table) -> None:
    for name, algorithm in algorithms():
        for field in dataclasses.fields(algorithm):
            for value in VALUES:

                def make(field: str = field.name, algorithm: Any = algorithm, value: Any = value) -> None:
                    made = dataclasses.replace(algorithm, **{field: value})
                    jax.eval_shape(made.init, jax.random.key(0))

                table.attempt("fields of algorithms", f"{name}.{field.name} = {value!r}", make)
    ppo = pgjax.PPO(pgjax.make("CartPole-v1"), pgjax.MLP(hidden=(8,)), num_envs=2, num_steps=2, num_minibatches=1)
    bad = [value for value in VALUES if not (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 9)]
    taken = {"directory": (None, "x", ""), "seed": (0,), "seeds": (None,), "checkpoint_every": (None,)}
    for argument in ("seed", "seeds", "checkpoint_every", "keep", "episodes", "sinks", "devices", "callback"):
        for value in bad:
            accepted = argument in ("devices", "callback") and value is None
            if accepted or any(value is x or (type(value) is type(x) and value == x) for x in taken.get(argument, ())):
                continue

            def run(argument: str = argument, value: Any = value) -> None:
                pgjax.run(dataclasses.replace(ppo, total_steps=4), progress=False, **{argument: value})

            table.attempt("arguments of run", f"{argument} = {value!r}", run)


def small_ppo() -> Any:
    """Six iterations."""
    small: Any = {"num_envs": 4, "num_steps": 8, "num_minibatches": 1, "total_steps": 6 * 32}
    return pgjax.PPO(pgjax.make("CartPole-v1"), pgjax.MLP(hidden=(8,)), **small)


def whole_sweep(directory: Path) -> Any:
    how: Any = {"points": 6, "episodes": 4, "checkpoint_every": 2, "members_at_once": 2, "progress": False}
    return pgjax.sweep(small_ppo(), 2, directory=directory, learning_rate=[1e-3, 1e-2], **how)


def sweeps_differ(found: Any, whole: Any) -> str | None:
    """How a sweep that was resumed differs from the whole one."""
    for name, curve in whole.curves.items():
        if not np.array_equal(found.curves[name], curve, equal_nan=True):
            return f"the curve {name}"
    return None if are_equal(*([s.params for s in x.states] for x in (found, whole))) else "the parameters"


def whole_run(directory: Path) -> Any:
    return pgjax.run(small_ppo(), 0, directory, checkpoint_every=2, episodes=4, progress=False)


def differs(found: Any, whole: Any) -> str | None:
    """How a result differs from that of the run it is of."""
    n = len(found.metrics.get("policy_loss", ()))
    for name, values in whole.metrics.items() if n else ():
        if not np.array_equal(found.metrics[name], values[:n], equal_nan=True):
            return f"the metric {name}"
    cut = int(found.state.iteration) < 6
    return None if cut or are_equal(found.state.params, whole.state.params) else "the parameters"


def are_equal(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)))


def harms(content: bytes, flips: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    for i in range(flips):
        changed = bytearray(content)
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        yield f"bit {i}", bytes(changed)
    yield from {"empty": b"", "half": content[: len(content) // 2], "bytes": b"\xff\xfe\x00", "object": b"{}\n"}.items()
    yield from {"list": b"[1]\n", "digits": b'{"iteration": ' + b"9" * 6000 + b"}\n", "deep": b"[" * 100_000}.items()


def looked_at(directory: Path) -> str | None:
    """Listed and plotted."""
    for command in (["list", str(directory.parent)], ["plot", str(directory), "--out", str(directory.parent / "c")]):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = cli.main(command)
        if code and "damaged" not in said.getvalue() and "error: " not in said.getvalue():
            return f"{command[0]} ended with {code}"
    return None


def attack_files(table: Table, options: Options) -> None:
    with tempfile.TemporaryDirectory() as base:
        original, copy = Path(base) / "original" / "run", Path(base) / "copies" / "run"
        whole = whole_run(original)
        whole = whole._replace(metrics=dict(whole.metrics))
        actions: dict[str, Callable[[], str | None]] = {
            "load": lambda: differs(pgjax.load(copy), whole),
            "load the best": lambda: differs(pgjax.load(copy, "best"), whole),
            "resume": lambda: differs(pgjax.resume(copy, progress=False), whole),
            "list and plot": lambda: looked_at(copy),
        }
        damage(table, options, "run", original, copy, actions)
        shutil.rmtree(original)
        swept = whole_sweep(original)
        actions = {
            "resume": lambda: sweeps_differ(pgjax.resume_sweep(copy, progress=False), swept),
            "list and plot": lambda: looked_at(copy),
        }
        damage(table, options, "sweep", original, copy, actions)


def copied(original: Path, copy: Path) -> None:
    """Anew."""
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(original, copy)


def damage(
    table: Table, options: Options, what: str, original: Path, copy: Path, actions: dict[str, Callable[[], str | None]]
) -> None:
    """Every file in turn; each action has a fresh copy."""
    rng = random.Random(0)
    for file in sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file()):
        for harm, content in harms((original / file).read_bytes(), options.flips, rng):
            for name, action in actions.items():
                copied(original, copy)
                (copy / file).write_bytes(content)
                table.attempt(f"damaged files of a {what}: {name}", f"{file}, {harm}", action)
        for kind in ("gone", "link", "pipe"):
            for name, action in actions.items():
                copied(original, copy)
                victim = original.parent.parent / "victim"
                victim.write_text("precious")
                (copy / file).unlink()
                if kind == "link":
                    (copy / file).symlink_to(victim)
                elif kind == "pipe":
                    os.mkfifo(copy / file)
                case = f"files of a {what} that are {kind}: {name}"
                table.attempt(case, str(file), action)
                if victim.read_text() != "precious":
                    table.note(case, str(file), "wrong", "what a link points to changed")


def attack_json(table: Table) -> None:
    """Entries of configs that were edited: each value in turn is replaced, and each entry is left out."""
    with tempfile.TemporaryDirectory() as base:
        for what, make in {"run": whole_run, "sweep": whole_sweep}.items():
            original, copy = Path(base) / "original" / "run", Path(base) / "copies" / "run"
            shutil.rmtree(original, ignore_errors=True)
            make(original)
            for file in sorted(original.glob("*.json")):
                for path, edited in edits(json.loads(file.read_text())):

                    def act(what: str = what, copy: Path = copy) -> str | None:
                        if what == "run":
                            pgjax.load(copy)
                            pgjax.resume(copy, progress=False)
                        else:
                            pgjax.resume_sweep(copy, progress=False)
                        return looked_at(copy)

                    copied(original, copy)
                    (copy / file.name).write_text(json.dumps(edited))
                    table.attempt(f"edited configs of a {what}", f"{file.name}: {path}", act)


def edits(config: Any) -> Iterator[tuple[str, Any]]:
    """The config with one entry replaced or left out, for every entry at any depth."""
    if not isinstance(config, dict):
        return
    for name, value in config.items():
        yield f"{name} left out", {k: v for k, v in config.items() if k != name}
        for other in EDITS:
            yield f"{name} = {other!r}", config | {name: other}
        for path, edited in edits(value):
            yield f"{name}.{path}", config | {name: edited}


class Own:
    """An object with the methods it is given."""

    def __init__(self, methods: dict[str, Any]) -> None:
        vars(self).update(methods)

    def __call__(self) -> None: ...

    init = initial_memory = step = unroll = __call__


class Raising(Own):
    """One whose parameters cannot be had."""

    @property
    def default_params(self) -> None:
        """Not to be had."""
        raise RuntimeError("broken")


def attack_own_code(table: Table) -> None:
    """Networks and environments of one's own, of which one method gives what it should not, or raises."""
    small: Any = {"num_envs": 2, "num_steps": 2, "num_minibatches": 1, "total_steps": 8}
    mlp, cartpole = pgjax.MLP(hidden=(8,)), pgjax.make("CartPole-v1").env
    methods = {
        "networks": {name: getattr(mlp, name) for name in ("init", "initial_memory", "step", "unroll")},
        "environments": {
            name: getattr(cartpole, name) for name in ("reset", "step", "observation_space", "action_space")
        }
        | {"default_params": cartpole.default_params},
    }
    for what, whole in methods.items():
        for name in whole:
            for value in [*VALUES, RuntimeError]:

                def give(*_: Any, value: Any = value) -> Any:
                    if value is RuntimeError:
                        raise value("broken")
                    return value

                def act(
                    what: str = what, whole: Any = whole, name: str = name, give: Any = give, value: Any = value
                ) -> None:
                    if name == "default_params":
                        own: Any = Raising(whole) if value is RuntimeError else Own(whole | {name: value})
                    else:
                        own = Own(whole | {name: give})
                    if what == "networks":
                        pgjax.run(pgjax.PPO(pgjax.make("CartPole-v1"), own, **small), progress=False)
                    else:
                        pgjax.run(pgjax.PPO(pgjax.make(own), mlp, **small), progress=False)

                table.attempt(f"{what} of one's own", f"{name} gives {value!r}", act)


def main(options: Options) -> None:
    table = Table()
    attack_inputs(table)
    attack_own_code(table)
    attack_json(table)
    attack_files(table, options)
    rows = [
        [what, str(sum(counts.values())), *(str(counts[outcome]) for outcome in OUTCOMES)]
        for what, counts in table.counts.items()
    ]
    text = markdown(["attacked", "tried", *OUTCOMES], rows)
    write_report(options.out, text, None, {"counts": table.counts, "raw_or_wrong": table.cases})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
