"""TRL's DPO: tokens trained per second.

    pip install torch==2.13.0 trl==1.16.0
    python trl_dpo.py --width 256 --layers 4 --heads 4 --vocab 1024 --batch 64 --prompt-length 32 --response-length 64

An iteration is one gradient step on `batch` pairs of new responses to one prompt each, of full length, the last token
being the end of text. `tokens` counts prompt and response of both answers. To be mirrored:

- the sigmoid loss, beta 0.1; what the reference says of all pairs is computed before the clock starts;
- AdamW, learning rate 1e-4 without a schedule, no weight decay, gradients clipped to a global norm of 1;
- float32, no gradient checkpointing, no dropout.

The clock goes from the end of one step to the end of another.
"""

import argparse
import sys
import tempfile
from contextlib import redirect_stdout

from datasets import Dataset  # type: ignore[import-not-found,unused-ignore]
from llama import Clock, iterations_in_all, llama, parse, parser, quiet, report, tokenizer, torch
from transformers import LlamaForCausalLM  # type: ignore[import-not-found,unused-ignore]
from trl import DPOConfig, DPOTrainer  # type: ignore[import-not-found,unused-ignore]


def config(args: argparse.Namespace, folder: str) -> DPOConfig:
    return DPOConfig(
        **quiet(args, folder),
        beta=0.1,
        precompute_ref_log_probs=True,
        max_length=None,
        learning_rate=1e-4,
        max_grad_norm=1.0,
    )


def texts(args: argparse.Namespace, length: int, lead: str = "") -> list[str]:
    """Of so many tokens each, all but the end of text among them."""
    rows = torch.randint(args.vocab - 2, (iterations_in_all(args) * args.batch, length)).tolist()
    return [lead + " ".join(map(str, row)) for row in rows]


def main() -> None:
    args = parse(parser(__doc__, warmup=2))
    words = tokenizer(args.vocab - 2)
    pairs = {name: texts(args, args.response_length - 1, " ") for name in ("chosen", "rejected")}
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = DPOTrainer(
            model=LlamaForCausalLM(llama(args)),
            args=config(args, folder),
            train_dataset=Dataset.from_dict({"prompt": texts(args, args.prompt_length)} | pairs),
            processing_class=words,
            callbacks=[clock],
        )
        trainer.train()
    tokens = {"tokens": 2 * args.batch * (args.prompt_length + args.response_length)}
    for repetition, seconds in enumerate(clock.seconds(args.warmup, args.iterations)):
        report("trl_dpo", args, repetition, seconds, tokens)


if __name__ == "__main__":
    main()
