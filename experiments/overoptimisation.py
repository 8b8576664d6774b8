"""Too much of a proxy: gold and proxy reward as a policy moves away from where it started (Gao et al., 2022).

    python experiments/overoptimisation.py

The gold reward is known: the sentiment of a sentence of the built-in grammar, and `UNGRAMMATICAL` for what is no
sentence. Proxies are reward models trained on preferences between completions of the fine-tuned model, drawn from
Bradley-Terry on the gold reward; each seed has pairs of its own. PPO without a KL penalty then maximises a proxy, and
both rewards are recorded against the square root of the KL divergence to the start. Proxies differ in how many pairs
they have seen and in the size of the model they started from; ensembles take the mean or the minimum of five.

Writes overoptimisation.json (configs, every curve), overoptimisation.md (table) and overoptimisation.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, text_of, write_report
from language import MAX_TOKENS, TOKENIZER, fine_tuning, pretraining, trained

import pgjax
from pgjax.alignment import PREFERENCES, PROMPTS, RLHF, LanguageModel, RewardModel, generate, grammar
from pgjax.alignment.generation import left_padded
from pgjax.alignment.learned_rewards import EnsembleOptions, ModelReward, of_members
from pgjax.alignment.reward_model import Reference
from pgjax.core.hyperparameters import pytree
from pgjax.reporting.statistics import interquartile_mean

UNGRAMMATICAL = -4.0
TEMPERATURE = 1.3
"""Of the completions that preferences are between: about half of them are sentences."""


@dataclasses.dataclass(frozen=True)
class Options:
    pairs: Annotated[tuple[int, ...], tyro.conf.arg(help="pairs that proxies are trained on")] = (100, 400, 2000)
    widths: Annotated[
        tuple[int, ...], tyro.conf.arg(help="other widths of proxies with the middle number of pairs")
    ] = (16, 128)
    seeds: Annotated[int, tyro.conf.arg(help="proxies of each kind, and members of an ensemble")] = 5
    completions: Annotated[int, tyro.conf.arg(help="completions per policy")] = 8192
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def gold(tokens: jax.Array, mask: jax.Array, prompt: jax.Array) -> jax.Array:
    sentence = grammar.is_grammatical(tokens, mask, prompt)
    return jnp.where(sentence > 0.5, grammar.sentiment(tokens, mask, prompt), UNGRAMMATICAL)


@pytree
class Watched(RLHF):
    """RLHF that also reports the gold reward of what it samples."""

    def statistics(self, rollout: Any, score: Any) -> Any:
        tokens, _, mask = rollout.completion
        found = jnp.mean(gold(tokens, mask, rollout.prompt.tokens))
        return super().statistics(rollout, score) | {"gold": found}


def preferences(start: LanguageModel, num: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of completions of the start, the first preferred with probability sigmoid(difference of gold)."""
    records = grammar.prompts(2 * num, 1000 + seed)
    prompts = [TOKENIZER.encode(record["prompt"]) for record in records]
    tokens, mask = left_padded(prompts, TOKENIZER.pad)
    keys = jax.random.split(jax.random.key(seed), 3)
    options = {"temperature": TEMPERATURE, "mask": mask, "eos": TOKENIZER.eos, "pad": TOKENIZER.pad}
    both = [generate(start.network, start.params, tokens, key, MAX_TOKENS, **options) for key in keys[:2]]
    scores = [np.asarray(gold(found.tokens, found.mask, jnp.asarray(tokens))) for found in both]
    first = np.asarray(jax.random.bernoulli(keys[2], jax.nn.sigmoid(scores[0] - scores[1])))
    completions = [
        [row[real][row[real] != TOKENIZER.eos].tolist() for row, real in zip(*map(np.asarray, found[::2]), strict=True)]
        for found in both
    ]
    pairs = []
    for prompt, a, b, a_wins in zip(prompts, *completions, first, strict=True):
        if a and b and a != b:
            pairs.append({"prompt": prompt, "chosen": a if a_wins else b, "rejected": b if a_wins else a})
    return pairs[:num]


def proxies(start: LanguageModel, model: LanguageModel, num: int, seeds: int) -> tuple[Any, Any, np.ndarray]:
    """Parameters and references of reward models with a leading axis of seeds, and their held-out accuracy."""
    found, accuracy = [], []
    for seed in range(seeds):
        # The same 500 pairs more, which no proxy is trained on, judge them all.
        train = preferences(start, num, seed)
        data = PREFERENCES.of(train, max_completion=MAX_TOKENS, held_out=0.1)
        size = min(32, data.packed(TOKENIZER, model.network.context).train.prompt.shape[0])
        algorithm = RewardModel(model, data, 160 * size, batch_size=size, learning_rate=5e-4, weight_decay=0.1)
        state = pgjax.run(algorithm, seed, progress=False).state
        judge = PREFERENCES.of(preferences(start, 500, 10_000), max_completion=MAX_TOKENS, held_out=0)
        rows = judge.packed(TOKENIZER, model.network.context).train
        chosen, rejected = jax.jit(algorithm.scores)(state.params, rows)
        accuracy.append(float(jnp.mean(chosen > rejected)))
        found.append((state.params, widened(state.reference)))
    params, reference = jax.tree.map(lambda *x: jnp.stack(x), *found)
    return params, reference, np.array(accuracy)


def widened(reference: Reference) -> Reference:
    """With completions of `MAX_TOKENS` tokens, so that those of several proxies can be stacked."""
    more = MAX_TOKENS - reference.completion.tokens.shape[1]
    return reference._replace(completion=jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, more))), reference.completion))


def curves(start: LanguageModel, rewards: list[ModelReward], options: Options) -> dict[str, np.ndarray]:
    """`[policies, iterations]` of the rewards and the KL."""
    found = []
    for seed, reward in enumerate(rewards):
        policy = Watched(
            start, reward, PROMPTS.make("grammar"), options.completions, beta=0.0, learning_rate=5e-4, num_epochs=2
        )
        found.append(pgjax.run(policy, 100 + seed, progress=False).metrics)
    return {name: np.stack([metrics[name] for metrics in found]) for name in ("gold", "reward", "kl_to_start")}


def main(options: Options) -> None:
    start, middle = model_of(64), options.pairs[len(options.pairs) // 2]
    kinds: dict[str, dict[str, np.ndarray]] = {}
    for width, num in [*((64, n) for n in options.pairs), *((w, middle) for w in options.widths)]:
        model = start if width == 64 else model_of(width)
        params, reference, accuracy = proxies(start, model, num, options.seeds)

        def reward(
            chosen: slice, ensemble: EnsembleOptions, model: Any = model, found: Any = (params, reference)
        ) -> Any:
            members = jax.tree.map(lambda x: x[chosen], found)
            return of_members(model.network, model.tokenizer, *members, ensemble)

        singles = [reward(slice(i, i + 1), EnsembleOptions()) for i in range(options.seeds)]
        name = f"{num} pairs" + ("" if width == 64 else f", width {width}")
        kinds[name] = curves(start, singles, options) | {"accuracy": accuracy}
        for reduce in ("mean", "min") if width == 64 else ():
            ensemble = reward(slice(None), EnsembleOptions(reduce=reduce))
            kinds[f"{name}, {reduce} of {options.seeds}"] = curves(start, [ensemble] * 2, options)
        print(name, flush=True)
    lines = [line_of(name, kind) for name, kind in kinds.items()]
    header = ["proxy", "accuracy", "highest gold reward", "at sqrt(KL)", "last gold reward", "last proxy reward"]
    about = (
        f"{options.seeds} proxies of each kind (2 policies per ensemble), {options.completions:,} completions each, "
        "interquartile means with 95 % intervals; the highest gold reward of curves smoothed over 5 iterations.\n\n"
    )
    config = Watched(start, gold, PROMPTS.make("grammar"), options.completions, beta=0.0)
    write_report(options.out, about + markdown(header, lines), config, {"curves": kinds})
    plot(kinds, options.out / "overoptimisation.png")


def model_of(width: int) -> LanguageModel:
    """Pretrained and fine-tuned."""
    lm = pretraining()
    network = dataclasses.replace(lm.network, width=width, mlp_width=4 * width)
    model, _ = trained(dataclasses.replace(lm, network=network))
    return trained(fine_tuning(model))[0]


def smooth(curve: np.ndarray, window: int = 5) -> np.ndarray:
    return np.apply_along_axis(lambda x: np.convolve(x, np.ones(window) / window, "valid"), -1, curve)


def line_of(name: str, kind: dict[str, np.ndarray]) -> list[str]:
    gold_curves, root_kl = smooth(kind["gold"]), np.sqrt(np.maximum(smooth(kind["kl_to_start"]), 0.0))
    best = gold_curves.argmax(axis=1)
    rows = np.arange(best.size)
    figures = gold_curves[rows, best], root_kl[rows, best], gold_curves[:, -1], smooth(kind["reward"])[:, -1]
    accuracy = text_of(interquartile_mean(kind["accuracy"])) if "accuracy" in kind else ""
    return [name, accuracy, *(text_of(interquartile_mean(x)) for x in figures)]


def plot(kinds: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    plt = pyplot()
    single = [name for name in kinds if "of" not in name]
    groups = [
        [name for name in single if "width" not in name],
        [name for name in kinds if "of" in name],
        [name for name in single if "width" in name or any(name in other for other in single if "width" in other)],
    ]
    figure, panels = plt.subplots(1, 3, figsize=(13, 3.8), sharey=True, layout="constrained")
    for panel, names, title in zip(panels, groups, ("number of pairs", "ensembles", "size of the proxy"), strict=True):
        for color, name in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], names, strict=False):
            root_kl = np.sqrt(np.maximum(smooth(kinds[name]["kl_to_start"]), 0.0))
            for metric, style in (("gold", "-"), ("reward", ":")):
                for x, y in zip(root_kl, smooth(kinds[name][metric]), strict=True):
                    panel.plot(x, y, style, color=color, linewidth=0.8, alpha=0.7)
            panel.plot([], [], color=color, label=name)
        panel.set(title=title, xlabel="square root of the KL to the start")
        panel.legend(frameon=False, fontsize=8)
    panels[0].set(ylabel="gold (solid) and proxy (dotted) reward")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
