"""TRL's supervised fine-tuning: tokens trained per second.

    pip install torch==2.13.0 trl==1.16.0
    python trl_sft.py --width 256 --layers 4 --heads 4 --vocab 1024 --batch 64 --prompt-length 32 --response-length 64

An iteration is one gradient step on a batch of new sequences, all `prompt_length + response_length` long, neither
padded nor packed. `tokens` counts every token of the batch, `response_tokens` those that have a loss. To be mirrored:

- the loss is the mean cross-entropy of the response's tokens over the batch, temperature 1;
- AdamW, learning rate 1e-4 without a schedule, betas 0.9 and 0.999, epsilon 1e-8, no weight decay, gradients clipped
  to a global norm of 1;
- float32, no gradient checkpointing, no accumulation, no dropout.

Besides the loss the trainer computes entropy and accuracy of each step, which it has no switch for. On a CPU it also
scores the prompt's tokens, whose loss it then masks (in tiles, without holding all logits). It logs, evaluates and
saves nothing. The clock goes from the end of one step to the end of another, so it covers collating, forward,
backward and the optimiser's step.
"""

import argparse
import sys
import tempfile
from contextlib import redirect_stdout

from datasets import Dataset  # type: ignore[import-not-found,unused-ignore]
from llama import Clock, iterations_in_all, llama, parse, parser, quiet, random_tokens, report, tokenizer
from transformers import LlamaForCausalLM  # type: ignore[import-not-found,unused-ignore]
from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found,unused-ignore]

IGNORED = -100  # the label of a token without a loss


def config(args: argparse.Namespace, folder: str) -> SFTConfig:
    return SFTConfig(
        **quiet(args, folder),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        learning_rate=1e-4,
        max_grad_norm=1.0,
    )


def main() -> None:
    args = parse(parser(__doc__, warmup=2))
    length = args.prompt_length + args.response_length
    rows = random_tokens(args, iterations_in_all(args) * args.batch, length)
    labels = [[IGNORED] * args.prompt_length + row[args.prompt_length :] for row in rows]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = SFTTrainer(
            model=LlamaForCausalLM(llama(args)),
            args=config(args, folder),
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": labels}),
            processing_class=tokenizer(args.vocab),
            callbacks=[clock],
        )
        trainer.train()
    tokens = {"tokens": args.batch * length, "response_tokens": args.batch * args.response_length}
    for repetition, seconds in enumerate(clock.seconds(args.warmup, args.iterations)):
        report("trl_sft", args, repetition, seconds, tokens)


if __name__ == "__main__":
    main()
