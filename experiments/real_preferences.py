"""DPO and GRPO on a real language model: SmolLM2-135M-Instruct learns sums of two numbers below 50.

    python experiments/real_preferences.py --model smollm2

`convert_smollm2.py` makes the folder of the model. A prompt shows two sums and asks for a third; an answer is right if
its first line is the sum and nothing else, which a function in Python checks. GRPO samples and is paid for right
answers. DPO learns from answers of the start to the same prompts, a right one over a wrong one. Both are judged on
pairs of numbers that neither has seen.

Writes real_preferences.json (configs and every figure), real_preferences.md and real_preferences.png.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, write_report
from smollm2 import PAD, compiled, init, our_model

from pgjax.alignment import DPO, GRPO, PREFERENCES, PROMPTS, LanguageModel, generate
from pgjax.alignment.generation import left_padded
from pgjax.alignment.models import Prompt, log_prob_of
from pgjax.alignment.scoring import HostReward
from pgjax.running.config import to_config

BELOW = 50
MAX_TOKENS = 6
HELD_OUT = 256
SAMPLED = 64
"""Completions at a time."""


@dataclasses.dataclass(frozen=True)
class Options:
    model: Annotated[Path, tyro.conf.arg(help="folder that convert_smollm2.py wrote")]
    iterations: Annotated[int, tyro.conf.arg(help="of GRPO, 64 completions each")] = 120
    prompts: Annotated[int, tyro.conf.arg(help="that the start answers for DPO, eight times each")] = 1024
    epochs: Annotated[int, tyro.conf.arg(help="passes of DPO over its pairs")] = 3
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def prompt_of(a: int, b: int) -> str:
    return f"7 + 5 = 12\n23 + 9 = 32\n{a} + {b} ="


def is_right(prompt: str, answer: str) -> bool:
    a, b = prompt.splitlines()[-1].removesuffix(" =").split(" + ")
    return answer.split("\n")[0].strip() == str(int(a) + int(b))


def right(prompts: list[str], answers: list[str]) -> list[float]:
    return [float(is_right(*each)) for each in zip(prompts, answers, strict=True)]


def questions() -> tuple[list[str], list[str]]:
    """Prompts to learn from and to be judged on."""
    pairs = [(a, b) for a in range(1, BELOW) for b in range(1, BELOW)]
    order = np.random.default_rng(0).permutation(len(pairs))
    texts = [prompt_of(*pairs[i]) for i in order]
    return texts[HELD_OUT:], texts[:HELD_OUT]


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def sampled(network: Any, params: Any, prompt: Prompt, key: jax.Array, eos: int, temperature: float) -> Any:
    ends = {"eos": eos, "pad": PAD}
    return generate(network, params, prompt.tokens, key, MAX_TOKENS, temperature, mask=prompt.mask, **ends)


def answers_of(
    model: LanguageModel, params: Any, prompts: list[str], key: jax.Array, temperature: float = 1.0
) -> tuple[list[str], float, float]:
    """One answer to each prompt, how far what was sampled is from the start (nats), and the share that is right."""
    texts: list[str] = []
    log_ratio = []
    reference = jax.jit(functools.partial(log_prob_of, model.network))
    encoded = [model.tokenizer.encode(text) for text in prompts]
    width = max(map(len, encoded))
    for first in range(0, len(prompts), SAMPLED):
        tokens, mask = left_padded([*encoded[first : first + SAMPLED], [PAD] * width], PAD)
        prompt = Prompt(jnp.asarray(tokens[:-1]), jnp.asarray(mask[:-1]))
        found = sampled(model.network, params, prompt, jax.random.fold_in(key, first), model.tokenizer.eos, temperature)
        before = reference(model.params, prompt, found.tokens, found.mask)
        log_ratio.append(np.asarray(jnp.sum(found.log_prob, axis=1) - before))
        rows = zip(np.asarray(found.tokens), np.asarray(found.mask), strict=True)
        texts += [model.tokenizer.decode(row[real].tolist()) for row, real in rows]
    return texts, float(np.mean(np.concatenate(log_ratio))), float(np.mean(right(prompts, texts)))


def judged(model: LanguageModel, params: Any, prompts: list[str]) -> dict[str, Any]:
    """On held-out prompts: sampled and greedy."""
    _, kl, share = answers_of(model, params, prompts, jax.random.key(1))
    texts, _, greedy = answers_of(model, params, prompts, jax.random.key(1), 0.0)
    return {"right": share, "right_greedy": greedy, "kl": kl, "texts": texts[:4]}


def run(algorithm: Any, held_out: list[str], every: int) -> dict[str, Any]:
    """All iterations, judged now and then; seconds are those of the iterations alone."""
    program, seconds_compile = compiled(algorithm)
    state, model, seconds = init(algorithm, jax.random.key(0)), algorithm.model, 0.0
    curve: list[dict[str, Any]] = []
    metrics: list[dict[str, float]] = []
    for i in range(algorithm.num_iterations + 1):
        if i % every == 0 or i == algorithm.num_iterations:
            curve.append({"iteration": i} | judged(model, algorithm.language_model(state).params, held_out))
            print(curve[-1], flush=True)
        if i < algorithm.num_iterations:
            start = time.perf_counter()
            state, found = jax.block_until_ready(program(algorithm, state))
            seconds += time.perf_counter() - start
            metrics.append({name: float(x) for name, x in found.items() if not isinstance(x, tuple)})
    return {"held_out": curve, "metrics": metrics, "seconds": seconds, "seconds_compile": seconds_compile}


def grpo(model: LanguageModel, asked: list[str], options: Options) -> GRPO:
    return GRPO(
        model,
        HostReward(right, model.tokenizer),
        PROMPTS.of([{"prompt": text} for text in asked], max_prompt=32, held_out=0.0),
        total_steps=SAMPLED * options.iterations,
        batch_size=SAMPLED,
        micro_batches=2,
        max_tokens=MAX_TOKENS,
        learning_rate=1e-5,
        beta=0.02,
        eos_penalty=0.0,
        skip_equal=True,
    )


def pairs_of(model: LanguageModel, asked: list[str]) -> list[dict[str, str]]:
    """A right and a wrong answer of the start to each prompt that has got both, among eight."""
    key = jax.random.key(2)
    answers = [answers_of(model, model.params, asked, jax.random.fold_in(key, i))[0] for i in range(8)]
    found = []
    for prompt, *texts in zip(asked, *answers, strict=True):
        good, bad = ([text for text in texts if is_right(prompt, text) == wanted] for wanted in (True, False))
        if good and bad and all(text.strip() for text in (good[0], bad[0])):
            found.append({"prompt": prompt, "chosen": good[0], "rejected": bad[0]})
    return found


def dpo(model: LanguageModel, pairs: list[dict[str, str]], options: Options) -> DPO:
    data = PREFERENCES.of(pairs, max_prompt=32, max_completion=MAX_TOKENS + 1, too_long="cut", held_out=0.0)
    return DPO(model, data, options.epochs * len(pairs), batch_size=8, learning_rate=1e-5, warmup=10)


def main(options: Options) -> None:
    model = our_model(options.model)
    asked, held_out = questions()
    algorithm: Any = grpo(model, asked, options)
    found = {"GRPO": run(algorithm, held_out, 20) | {"config": to_config(algorithm), "examples": len(asked)}}
    start = time.perf_counter()
    pairs = pairs_of(model, asked[: options.prompts])
    print(f"{len(pairs)} pairs in {time.perf_counter() - start:.0f} s", flush=True)
    algorithm = dpo(model, pairs, options)
    found["DPO"] = run(algorithm, held_out, 40) | {"config": to_config(algorithm), "examples": len(pairs)}
    found["DPO"]["seconds_sampling"] = time.perf_counter() - start - found["DPO"]["seconds"]
    write_report(options.out, table_of(found, held_out), None, {"found": found})
    plot(options, found)


def table_of(found: dict[str, Any], held_out: list[str]) -> str:
    before = found["GRPO"]["held_out"][0]
    rows = [["the start", "", "", *(f"{100 * before[name]:.1f}" for name in ("right", "right_greedy")), "0"]]
    shown = [[prompt.splitlines()[-1], line(text)] for prompt, text in zip(held_out, before["texts"], strict=False)]
    for name, each in found.items():
        last = each["held_out"][-1]
        figures = [f"{100 * last[kind]:.1f}" for kind in ("right", "right_greedy")]
        rows.append([name, str(last["iteration"]), f"{each['seconds']:.0f}", *figures, f"{last['kl']:.2f}"])
        shown = [[*row, line(text)] for row, text in zip(shown, last["texts"], strict=True)]
    pairs, margin = found["DPO"]["examples"], found["DPO"]["metrics"][-1]["rewards/margins"]
    return (
        f"One seed. GRPO has {found['GRPO']['examples']:,} prompts and {SAMPLED} completions per iteration, DPO "
        f"{pairs:,} pairs of the start's own answers,\n8 per step, whose margin ends at {margin:.2f}. Right first "
        f"lines on {HELD_OUT} sums that neither has seen:\n\n"
        + markdown(["", "iterations", "seconds", "right, sampled, %", "right, greedy, %", "KL, nats"], rows)
        + "\nGreedy answers to the first of them:\n\n"
        + markdown(["prompt", "the start", *found], shown, 2 + len(found))
    )


def line(text: str) -> str:
    return f"`{text!r}`".replace("|", "\\|")


def plot(options: Options, found: dict[str, Any]) -> None:
    figure, panel = pyplot().subplots(figsize=(6, 3.5), layout="constrained")
    for name, each in found.items():
        share = [100 * point["right"] for point in each["held_out"]]
        spent = [each["seconds"] * point["iteration"] / each["held_out"][-1]["iteration"] for point in each["held_out"]]
        panel.plot(np.array(spent) / 60, share, marker="o", markersize=4, label=name)
    panel.set(xlabel="minutes of training", ylabel="right, sampled, %", title="SmolLM2-135M-Instruct, held-out sums")
    panel.legend(frameon=False)
    figure.savefig(options.out / "real_preferences.png", dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
