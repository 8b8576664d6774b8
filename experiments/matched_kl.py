"""All preference methods on the grammar at the same KL: gold reward, grammaticality and ended texts.

    python experiments/matched_kl.py

The gold reward is the sentiment of the built-in grammar (`kl_ablation.py`). PPO (RLHF), GRPO without standard deviation
and RLOO are given the reward itself, online DPO labels that are drawn from Bradley-Terry under it; DPO and KTO learn
from pairs of the start's own answers with such labels, KTO taking the preferred answer for a good one. Every method
runs with four betas; what it reaches at a KL between two of them is interpolated, of each seed for itself, from the
start at 0 on. The best of n answers of the start stands beside them, at the KL it has at most, log n - (n - 1) / n.

Writes matched_kl.json (configs, every seed's figures), matched_kl.md and matched_kl.png.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, text_of, with_rows, write_report
from language import MAX_TOKENS, TOKENIZER, base_model, prompts

import pgjax
from pgjax.alignment import (
    DPO,
    GRPO,
    KTO,
    LABELS,
    PREFERENCES,
    PROMPTS,
    REWARDS,
    RLHF,
    RLOO,
    LanguageModel,
    OnlineDPO,
    Transformer,
    generate,
    grammar,
)
from pgjax.alignment.generation import Generation
from pgjax.alignment.models import Prompt, log_prob_of
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

BETAS = (2.0, 1.0, 0.6, 0.4)
BETAS_OF_KTO = (0.6, 0.3, 0.15, 0.08)
"""Its value saturates: at those of the others it stays near to the start."""
MATCHED = (0.25, 0.5, 1.0, 2.0)
CHOICES = (2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each method and beta")] = 10
    completions: Annotated[int, tyro.conf.arg(help="completions that each run samples")] = 4096
    pairs: Annotated[int, tyro.conf.arg(help="pairs that each seed of DPO and KTO learns from")] = 4096
    epochs: Annotated[int, tyro.conf.arg(help="passes over them")] = 2
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


class Found(NamedTuple):
    """Means over the completions of a model, one for each prompt."""

    kl: jax.Array
    sentiment: jax.Array
    grammatical: jax.Array
    ended: jax.Array
    length: jax.Array


def written(network: Transformer, params: Any, prompt: Prompt, key: jax.Array) -> tuple[Generation, jax.Array]:
    """A completion of each prompt, and its figures but the KL, `[4, B]`."""
    found = generate(
        network, params, prompt.tokens, key, MAX_TOKENS, mask=prompt.mask, eos=TOKENIZER.eos, pad=TOKENIZER.pad
    )
    text = found.tokens, found.mask, prompt.tokens
    ended = jnp.any((found.tokens == TOKENIZER.eos) & found.mask, axis=1)
    each = grammar.sentiment(*text), grammar.is_grammatical(*text), ended, jnp.sum(found.mask, axis=1)
    return found, jnp.stack([x.astype(jnp.float32) for x in each])


@functools.partial(jax.jit, static_argnums=(0, 4))
def found_of(network: Transformer, params: Any, start: Any, key: jax.Array, num: int = 1024) -> Found:
    """What a model writes; the KL is the mean log-ratio of what is sampled."""
    prompt = Prompt(*prompts(num))
    found, figures = written(network, params, prompt, key)
    kl = jnp.sum(found.log_prob, axis=1) - log_prob_of(network, start, prompt, found.tokens, found.mask)
    return Found(jnp.mean(kl), *jnp.mean(figures, axis=1))


def answers_of(start: LanguageModel, num: int) -> list[tuple[str, list[int], list[int]]]:
    """Prompts with two answers that differ, the preferred one first."""
    records = grammar.prompts(2 * num, 5)
    encoded = [TOKENIZER.encode(record["prompt"]) for record in records]
    ends = {"eos": TOKENIZER.eos, "pad": TOKENIZER.pad}
    answers, scores = [], []
    for i in range(2):
        tokens, _, mask = generate(start.network, start.params, encoded, jax.random.key(i), MAX_TOKENS, **ends)
        real = np.asarray(mask & (tokens != TOKENIZER.eos))
        answers.append([row[said].tolist() for row, said in zip(np.asarray(tokens), real, strict=True)])
        scores.append(np.asarray(grammar.sentiment(tokens, mask, tokens)))
    wins = np.random.default_rng(5).random(len(records)) < 1.0 / (1.0 + np.exp(scores[1] - scores[0]))
    pairs = zip(records, *answers, wins, strict=True)
    return [(record["prompt"], *((a, b) if win else (b, a))) for record, a, b, win in pairs if a != b and a and b][:num]


def algorithms(start: LanguageModel, options: Options) -> dict[str, tuple[Any, Any, tuple[float, ...]]]:
    """Each method, the rows of all seeds if it learns from such, and its betas."""
    reward = REWARDS.make("sentiment")
    sampling = start, reward, PROMPTS.make("grammar"), options.completions
    one_update = {"batch_size": 128, "learning_rate": 1e-3}
    methods = {
        "PPO": RLHF(*sampling, batch_size=128, learning_rate=1e-3, num_epochs=2),
        "GRPO": GRPO(*sampling, **one_update, scale="none"),
        "RLOO": RLOO(*sampling, **one_update),
        "online DPO": OnlineDPO(*sampling, batch_size=128, learning_rate=1e-3),
    }
    found: dict[str, tuple[Any, Any, tuple[float, ...]]] = {
        name: (method, None, BETAS) for name, method in methods.items()
    }
    answers = answers_of(start, options.seeds * options.pairs)
    pairs = [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in answers]
    labels = [
        {"prompt": prompt, "completion": answer, "label": label}
        for prompt, *both in answers
        for answer, label in zip(both, (True, False), strict=True)
    ]
    limits = {"max_completion": MAX_TOKENS, "too_long": "cut", "held_out": 0}
    fields = {"batch_size": 64, "learning_rate": 5e-4}
    dpo = DPO(start, PREFERENCES.of(pairs, **limits), options.epochs * options.pairs, **fields)
    kto = KTO(start, LABELS.of(labels, **limits), 2 * options.epochs * options.pairs, **fields)
    for name, algorithm, betas in (("DPO", dpo, BETAS), ("KTO", kto, BETAS_OF_KTO)):
        rows = jax.tree.map(lambda x: x.reshape(options.seeds, -1, *x.shape[1:]), algorithm.data.train)
        found[name] = algorithm, rows, betas
    return found


def over_betas(algorithm: Any, rows: Any, betas: tuple[float, ...], options: Options) -> Found:
    """Every figure, `[betas, seeds]`."""
    start = algorithm.model
    if rows is None:
        result = pgjax.sweep(algorithm, seeds=options.seeds, beta=list(betas), progress=False)
        found = []
        for i in range(len(result)):
            member = result.member(i)
            params = member.algorithm.language_model(member.state).params
            found.append(found_of(start.network, params, start.params, jax.random.key(i)))
        return Found(*(np.array(x).reshape(len(betas), -1) for x in zip(*found, strict=True)))

    def one(beta: jax.Array, key: jax.Array, rows: Any) -> Found:
        mine = dataclasses.replace(with_rows(algorithm, rows), beta=beta)
        params = mine.language_model(pgjax.train(mine, key)[0]).params
        return found_of(start.network, params, start.params, jax.random.fold_in(key, 1))

    over_seeds = jax.vmap(one, in_axes=(None, 0, 0))
    keys = jax.random.split(jax.random.key(0), options.seeds)
    program = jax.jit(lambda betas: jax.lax.map(lambda beta: over_seeds(beta, keys, rows), betas))
    return jax.tree.map(np.asarray, program(jnp.array(betas)))


def best_of(start: LanguageModel, options: Options) -> Found:
    """The best of n answers by the reward itself, `[choices, seeds]`."""
    prompt = Prompt(*prompts(1024))

    @functools.partial(jax.jit, static_argnums=1)
    def best(key: jax.Array, n: int) -> Found:
        found = jax.lax.map(lambda key: written(start.network, start.params, prompt, key)[1], jax.random.split(key, n))
        place = jnp.argmax(found[:, 0], axis=0)
        chosen = jnp.take_along_axis(found, place[None, None], axis=0)[0]
        return Found(jnp.log(n) - (n - 1) / n, *jnp.mean(chosen, axis=1))

    keys = jax.random.split(jax.random.key(7), options.seeds)
    rows = [[best(key, n) for key in keys] for n in CHOICES]
    return Found(*(np.array([[getattr(x, name) for x in row] for row in rows]) for name in Found._fields))


def matched(found: Found, start: Found, kl: float) -> dict[str, np.ndarray] | None:
    """The figures of each seed at this KL; None where a seed's runs do not reach it."""
    if np.any(found.kl.max(axis=0) < kl):
        return None
    values: dict[str, np.ndarray] = {}
    for name in ("sentiment", "grammatical", "ended", "length"):
        per_seed = []
        for seed in range(found.kl.shape[1]):
            kls = np.concatenate([[0.0], found.kl[:, seed]])
            order = np.argsort(kls)
            per_seed.append(
                np.interp(
                    kl, kls[order], np.concatenate([[getattr(start, name)], getattr(found, name)[:, seed]])[order]
                )
            )
        values[name] = np.array(per_seed)
    return values


def main(options: Options) -> None:
    model = base_model()
    start = Found(*map(float, found_of(model.network, model.params, model.params, jax.random.key(1))))
    found: dict[str, Found] = {}
    configs = {}
    for name, (algorithm, rows, betas) in algorithms(model, options).items():
        found[name], configs[name] = over_betas(algorithm, rows, betas, options), to_config(algorithm)
        print(
            name,
            {field: np.round(x.mean(axis=1), 2).tolist() for field, x in found[name]._asdict().items()},
            flush=True,
        )
    found["best of n"] = best_of(model, options)
    lines = [
        [
            "the start",
            "0",
            f"{start.sentiment:.2f}",
            f"{100 * start.grammatical:.1f}",
            f"{100 * start.ended:.1f}",
            f"{start.length:.1f}",
        ]
    ]
    for kl in MATCHED:
        for name, each in found.items():
            values = matched(each, start, kl)
            if values is None:
                lines.append([name, f"{kl:g}", *["not reached"] * 4])
                continue
            columns = (
                (values["sentiment"], 2),
                (100 * values["grammatical"], 1),
                (100 * values["ended"], 1),
                (values["length"], 1),
            )
            lines.append([name, f"{kl:g}", *(text_of(interquartile_mean(x), digits) for x, digits in columns)])
    header = ["", "KL", "reward (sentiment)", "grammatical, %", "ended, %", "tokens"]
    table = (
        f"{options.seeds} seeds of each of four betas; interquartile means with 95 % intervals, interpolated to the "
        f"same KL.\n\n{markdown(header, lines)}"
    )
    figures = {"configs": configs, "betas": BETAS, "betas_of_kto": BETAS_OF_KTO, "start": start._asdict()}
    write_report(options.out, table, None, figures | {"found": {name: each._asdict() for name, each in found.items()}})
    plot(options, found, start)


def plot(options: Options, found: dict[str, Found], start: Found) -> None:
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, (name, each) in enumerate(found.items()):
        order = np.argsort(each.kl.mean(axis=1))
        style = {"color": "black", "linestyle": "--"} if name == "best of n" else {"color": f"C{i}"}
        for panel, field, scale in zip(panels, ("sentiment", "grammatical"), (1, 100), strict=True):
            values = scale * getattr(each, field)
            panel.plot(each.kl, values, ".", color=style["color"], alpha=0.35, markersize=4)
            means = np.concatenate(
                [[[0.0, scale * getattr(start, field)]], np.stack([each.kl, values], -1).mean(axis=1)[order]]
            )
            panel.plot(*means.T, **style, label=name)
    label = "KL to the start, nats"
    panels[0].set(xlabel=label, ylabel="reward: positive minus negative adjectives", xlim=(0, 7), ylim=(0, 5))
    panels[1].set(xlabel=label, ylabel="grammatical, %", xlim=(0, 7), ylim=(60, 100))
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(options.out / "matched_kl.png", dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
