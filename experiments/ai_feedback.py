"""AI feedback: how good labels must be, a judge's beside the constitution's own, and what critique and revision change.

    python experiments/ai_feedback.py

The policy speaks the grammar; the constitution (`pgjax/alignment/constitution.py`) asks it to be kind and brief and to
end its sentences. A judge is trained on 2,000 verdicts of the constitution, a critic on 2,000 revisions. Then, with ten
seeds that have pairs of their own:

- *labels*: DPO on pairs of the policy's answers, labelled by the constitution, by the judge asked in one order or in
  both, and by the constitution with a share of labels turned over, under the plain, the smoothed and the robust loss;
- *online*: online DPO with the judge's labels;
- *reward model*: trained on the judge's labels, it takes the best of eight answers;
- *revision*: the policy answers, the critic says what is wrong and answers again; SFT on the revisions, then DPO of
  revisions over answers.

What counts are the rules that answers to prompts keep which no stage has seen. Writes ai_feedback.json (configs, every
seed's figures), ai_feedback.md and ai_feedback.png.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, text_of, with_rows, write_report
from language import MAX_TOKENS, trained

import pgjax
from pgjax.alignment import (
    COMPLETIONS,
    DPO,
    LM,
    PREFERENCES,
    PROMPTS,
    SFT,
    TEXTS,
    Judge,
    LanguageModel,
    OnlineDPO,
    RewardModel,
    Transformer,
    constitution,
    generate,
    revise,
)
from pgjax.alignment.generation import Generation, left_padded
from pgjax.alignment.judge import JudgeOptions
from pgjax.alignment.models import Prompt
from pgjax.alignment.packing import Preferences
from pgjax.alignment.revision import as_completions, as_preferences
from pgjax.alignment.reward_model import score_at_last
from pgjax.alignment.tokenizers import TOKENIZERS
from pgjax.reporting.statistics import interquartile_mean
from pgjax.running.config import to_config

TOKENIZER = TOKENIZERS.make("constitution")
NOISE = (0.1, 0.2, 0.3, 0.4)
CHOICES = 8


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: Annotated[int, tyro.conf.arg(help="seeds of each")] = 10
    pairs: Annotated[int, tyro.conf.arg(help="pairs of answers that each seed learns from")] = 2048
    epochs: Annotated[int, tyro.conf.arg(help="passes over them")] = 2
    examples: Annotated[int, tyro.conf.arg(help="verdicts and revisions that judge and critic learn from")] = 2000
    revisions: Annotated[int, tyro.conf.arg(help="answers that are revised")] = 4096
    beta: Annotated[float, tyro.conf.arg(help="weight of the KL divergence in DPO")] = 0.1
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def models(options: Options) -> dict[str, tuple[LanguageModel, Any]]:
    """Policy, judge and critic, from one pretrained model, with what trained them."""
    network = Transformer(width=64, layers=2, num_heads=4, num_groups=4, mlp_width=256, context=96)
    lm = LM(TEXTS.make("constitution", length=64, examples=16_384), TOKENIZER, network, 999_936, learning_rate=3e-3)
    start = trained(lm)[0]
    limits = {"max_prompt": 64, "max_completion": 32, "too_long": "drop"}

    def taught(records: list[dict[str, Any]], epochs: int) -> tuple[LanguageModel, SFT]:
        data = COMPLETIONS.of(records, **limits)
        sft = SFT(start, data, epochs * len(records), batch_size=64, learning_rate=1e-3)
        return trained(sft)[0], sft

    return {
        "policy": taught(constitution.completions(16_384, 0), 1),
        "judge": taught(constitution.judgements(options.examples, 0), 8),
        "critic": taught(constitution.revisions(options.examples, 0), 8),
    }


def prompts_of(num: int, seed: int) -> Prompt:
    records = constitution.completions(num, seed)
    tokens, mask = left_padded([TOKENIZER.encode(record["prompt"]) for record in records], TOKENIZER.pad)
    return Prompt(jnp.asarray(tokens), jnp.asarray(mask))


def answered(model: LanguageModel, params: Any, prompt: Prompt, key: jax.Array) -> Generation:
    return generate(
        model.network, params, prompt.tokens, key, MAX_TOKENS, mask=prompt.mask, eos=TOKENIZER.eos, pad=TOKENIZER.pad
    )


def kept(prompt: Prompt, answers: Generation) -> jax.Array:
    """Which of the three rules each answer keeps."""
    return constitution.rules_kept(answers.tokens, answers.mask, prompt.tokens)


def pairs_of(policy: LanguageModel, judge: Judge, num: int) -> tuple[Preferences, dict[str, np.ndarray]]:
    """Pairs of the policy's answers that keep different numbers of rules, and whether the first is better, by the
    constitution and by the judge."""
    prompt = prompts_of(3 * num, 11)
    first, second = (answered(policy, policy.params, prompt, jax.random.key(i)) for i in range(2))
    gap = np.asarray(jnp.sum(kept(prompt, first), axis=1) - jnp.sum(kept(prompt, second), axis=1))
    differ = np.flatnonzero(gap)[:num]
    rows = Preferences(*prompt, first.tokens, first.mask, second.tokens, second.mask, jnp.zeros(gap.size))
    rows = jax.tree.map(lambda x: x[differ], rows)
    labels = {"the constitution": gap[differ] > 0}
    for name, swap in (("the judge, one order", False), ("the judge", True)):
        asked = dataclasses.replace(judge, options=JudgeOptions(swap=swap))
        labels[name] = np.asarray(jax.jit(asked.prefers)(rows) > 0)
    return rows, labels


def labelled(rows: Preferences, first_wins: np.ndarray) -> Preferences:
    """With the preferred answer as the chosen one."""
    wins = jnp.asarray(first_wins)[:, None]
    chosen, chosen_mask = (jnp.where(wins, a, b) for a, b in (rows[2:5:2], rows[3:6:2]))
    rejected, rejected_mask = (jnp.where(wins, b, a) for a, b in (rows[2:5:2], rows[3:6:2]))
    return rows._replace(chosen=chosen, chosen_mask=chosen_mask, rejected=rejected, rejected_mask=rejected_mask)


@functools.partial(jax.jit, static_argnums=0)
def scores_of(network: Transformer, params: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Shares of answers to unseen prompts that keep each rule and all of them, and the mean share of rules."""
    prompt = prompts_of(1024, 9_999)
    model = LanguageModel(network, TOKENIZER, params)
    rules = kept(prompt, answered(model, params, prompt, key))
    found = {name: jnp.mean(rules[:, i]) for i, name in enumerate(constitution.RULES)}
    return found | {"rules": jnp.mean(rules), "all": jnp.mean(jnp.all(rules, axis=1))}


def over_seeds(algorithm: Any, rows: Any, seeds: int) -> dict[str, np.ndarray]:
    """The scores of runs with rows of their own, `[seeds, n, ...]`; without rows, with the algorithm's."""

    def member(key: jax.Array, rows: Any) -> dict[str, jax.Array]:
        state, _ = pgjax.train(algorithm if rows is None else with_rows(algorithm, rows), key)
        params = algorithm.language_model(state).params
        return scores_of(algorithm.model.network, params, jax.random.fold_in(key, 1))

    keys = jax.random.split(jax.random.key(2), seeds)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(member, in_axes=(0, None if rows is None else 0)))(keys, rows))


def label_quality(
    options: Options, policy: LanguageModel, judge: Judge
) -> tuple[dict[str, Any], dict[str, float], DPO]:
    """DPO under labels from different hands; and how often the labels agree with the constitution's."""
    num = options.seeds * options.pairs
    rows, labels = pairs_of(policy, judge, num)
    truth = labels["the constitution"]
    agreement = {name: float(np.mean(found == truth)) for name, found in labels.items()}
    data = PREFERENCES.of(constitution.preferences(512, 0), held_out=0, max_completion=MAX_TOKENS, too_long="cut")
    packed = data.packed(TOKENIZER, policy.network.context)
    steps = options.epochs * options.pairs
    fields = {"batch_size": 64, "learning_rate": 5e-4, "beta": options.beta}
    plain = DPO(policy, dataclasses.replace(packed, train=rows), steps, **fields)

    def run(first_wins: np.ndarray, algorithm: DPO = plain) -> dict[str, np.ndarray]:
        divided = jax.tree.map(
            lambda x: x.reshape(options.seeds, options.pairs, *x.shape[1:]), labelled(rows, first_wins)
        )
        return over_seeds(algorithm, divided, options.seeds)

    found = {f"DPO, labels of {name}": run(first_wins) for name, first_wins in labels.items()}
    for noise in NOISE:
        turned = truth ^ (np.random.default_rng(5).random(num) < noise)
        for loss, smoothing in (("sigmoid", 0.0), ("sigmoid", noise), ("robust", noise)):
            name = "plain" if not smoothing else "smoothed" if loss == "sigmoid" else "robust"
            algorithm = dataclasses.replace(plain, loss=loss, label_smoothing=smoothing)
            found[f"DPO, {noise:.0%} wrong, {name}"] = run(turned, algorithm)
        print(f"{noise:.0%} wrong", flush=True)
    return found, agreement, plain


def best_of(options: Options, policy: LanguageModel, judge: Judge) -> tuple[dict[str, Any], RewardModel]:
    """The best of eight answers by reward models that learned from the judge's labels."""
    records = judge.relabel(constitution.preferences(options.pairs, 21), max_completion=MAX_TOKENS)
    algorithm = RewardModel(policy, PREFERENCES.of(records), 4 * options.pairs, batch_size=64, learning_rate=5e-4)
    prompt = prompts_of(1024, 9_999)

    def member(key: jax.Array) -> dict[str, jax.Array]:
        state, _ = pgjax.train(algorithm, key)

        def answer(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = answered(policy, policy.params, prompt, key)
            return score_at_last(policy.network, state.params, prompt, found.tokens, found.mask), kept(prompt, found)

        score, rules = jax.lax.map(answer, jax.random.split(jax.random.fold_in(key, 1), CHOICES))
        best = jnp.take_along_axis(rules, jnp.argmax(score, axis=0)[None, :, None], axis=0)[0]
        found = {name: jnp.mean(best[:, i]) for i, name in enumerate(constitution.RULES)}
        return found | {"rules": jnp.mean(best), "all": jnp.mean(jnp.all(best, axis=1))}

    found = jax.jit(jax.vmap(member))(jax.random.split(jax.random.key(3), options.seeds))
    return jax.tree.map(np.asarray, found), algorithm


def revised(options: Options, policy: LanguageModel, critic: LanguageModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """SFT on revisions of the policy's answers, then DPO of revisions over answers; and what is to be known of them."""
    prompts = [record["prompt"] for record in constitution.completions(options.revisions, 31)]
    written = revise(policy, prompts, jax.random.key(4), MAX_TOKENS, critic=critic)
    answers = [constitution.faults(r.prompt, r.answer) for r in written]
    revisions = [constitution.faults(r.prompt, r.revision) for r in written]
    right = np.mean([r.critique == (" ".join(f) or constitution.FINE) for r, f in zip(written, answers, strict=True)])
    for each in written[:6]:
        print(each)
    sft = SFT(
        policy,
        COMPLETIONS.of(as_completions(written), max_completion=MAX_TOKENS, too_long="cut"),
        2 * options.revisions,
        batch_size=64,
        learning_rate=5e-4,
    )
    after, _ = trained(sft)
    pairs = as_preferences(written)
    data = PREFERENCES.of(pairs, max_completion=MAX_TOKENS, too_long="cut")
    dpo = DPO(after, data, options.epochs * len(pairs), batch_size=64, learning_rate=5e-4, beta=options.beta)
    found = {
        "SFT on revisions": over_seeds(sft, None, options.seeds),
        "SFT, then DPO of revisions over answers": over_seeds(dpo, None, options.seeds),
    }
    about = {
        "answers that keep all rules": float(np.mean([not x for x in answers])),
        "revisions that keep all rules": float(np.mean([not x for x in revisions])),
        "critiques that are right": float(right),
    }
    return found, {"about": about, "sft": to_config(sft), "dpo": to_config(dpo)}


def main(options: Options) -> None:
    known = models(options)
    policy, judge_model, critic = (known[name][0] for name in ("policy", "judge", "critic"))
    judge = Judge(judge_model)
    keys = jax.random.split(jax.random.key(6), options.seeds)
    found: dict[str, Any] = {
        "the policy": jax.tree.map(
            np.asarray, jax.vmap(lambda key: scores_of(policy.network, policy.params, key))(keys)
        )
    }
    labels, agreement, dpo = label_quality(options, policy, judge)
    found |= labels
    print(agreement, flush=True)
    found["best of 8, reward model of the judge's labels"], reward_model = best_of(options, policy, judge)
    online = OnlineDPO(
        policy,
        judge,
        PROMPTS.make("constitution"),
        4 * options.pairs,
        beta=options.beta,
        batch_size=128,
        learning_rate=5e-4,
        max_tokens=MAX_TOKENS,
        num_minibatches=2,
    )
    found["online DPO, labels of the judge"] = over_seeds(online, None, options.seeds)
    revisions, more = revised(options, policy, critic)
    found |= revisions
    columns = ["all", "rules", *constitution.RULES]
    rows = [
        [name, *(text_of(interquartile_mean(100 * scores[column]), 1) for column in columns)]
        for name, scores in found.items()
    ]
    header = ["", "keep all rules, %", "rules kept, %", "kind, %", "brief, %", "sentences, %"]
    about = "; ".join(f"{name}: {share:.1%}" for name, share in (agreement | more["about"]).items())
    table = (
        f"{options.seeds} seeds each, with {options.pairs:,} pairs of their own; answers to 1,024 unseen prompts; "
        f"interquartile means with 95 % intervals.\n\n{markdown(header, rows)}\nAgreement of labels with the "
        f"constitution's, and of the revisions: {about}.\n"
    )
    configs = {name: to_config(algorithm) for name, (_, algorithm) in known.items()}
    configs |= {"dpo": to_config(dpo), "reward model": to_config(reward_model), "online dpo": to_config(online)}
    figures = {"configs": configs | {"revision": more}, "agreement": agreement, "found": found}
    write_report(options.out, table, None, figures)
    plot(options, found)


def plot(options: Options, found: dict[str, Any]) -> None:
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(7, 4), layout="constrained")
    for loss in ("plain", "smoothed", "robust"):
        values = [interquartile_mean(100 * found[f"DPO, {noise:.0%} wrong, {loss}"]["all"]) for noise in NOISE]
        middle, low, high = np.array(values).T
        panel.errorbar(NOISE, middle, (middle - low, high - middle), marker="o", capsize=3, label=f"{loss} loss")
    for name, style in (
        ("the policy", ":"),
        ("DPO, labels of the constitution", "-"),
        ("DPO, labels of the judge", "--"),
    ):
        panel.axhline(
            float(interquartile_mean(100 * found[name]["all"])[0]), color="black", linestyle=style, label=name
        )
    panel.set(xlabel="share of wrong labels", ylabel="answers that keep all rules, %")
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(options.out / "ai_feedback.png", dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
