"""TRL's GRPO with a rule for a reward: tokens of completions trained per second.

    pip install torch==2.13.0 trl==1.16.0
    python trl_grpo.py --width 256 --layers 4 --heads 4 --vocab 1024 --batch 64 --prompt-length 32 --response-length 64

An iteration samples `batch` completions, eight for each prompt, and makes one gradient step on them. `tokens` counts
the completions' tokens. To be mirrored:

- sampling at temperature 1 from all tokens with transformers' `generate`, the whole batch at once;
- the reward is the share of even token ids, which costs nothing; advantages are divided by the group's standard
  deviation;
- one epoch, so that ratios are 1; the loss is a mean over all tokens, with the k3 estimate of the KL to a reference,
  0.05;
- AdamW, learning rate 3e-6 without a schedule, no weight decay, gradients clipped to a global norm of 0.5;
- float32, no gradient checkpointing, no dropout.

The clock goes from the end of one iteration to the end of another.
"""

import argparse
import sys
import tempfile
from contextlib import redirect_stdout
from typing import Any

from datasets import Dataset  # type: ignore[import-not-found,unused-ignore]
from llama import Clock, llama, parse, parser, quiet, random_tokens, report, tokenizer
from transformers import LlamaForCausalLM  # type: ignore[import-not-found,unused-ignore]
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found,unused-ignore]


def config(args: argparse.Namespace, folder: str) -> GRPOConfig:
    return GRPOConfig(
        **quiet(args, folder),
        model_init_kwargs={"dtype": "float32"},
        num_generations=8,
        max_completion_length=args.response_length,
        temperature=1.0,
        top_k=0,
        beta=0.05,
        loss_type="dapo",
        learning_rate=3e-6,
        max_grad_norm=0.5,
    )


def share_of_even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def main() -> None:
    args = parse(parser(__doc__, warmup=1))
    prompts = [" ".join(map(str, row)) for row in random_tokens(args, 40 * args.batch, args.prompt_length)]
    words = tokenizer(args.vocab)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        LlamaForCausalLM(llama(args)).save_pretrained(f"{folder}/model")  # the reference is read from there as well
        trainer = GRPOTrainer(
            model=f"{folder}/model",
            reward_funcs=share_of_even,
            args=config(args, folder),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=words,
            callbacks=[clock],
        )
        trainer.train()
    for repetition, seconds in enumerate(clock.seconds(args.warmup, args.iterations)):
        report("trl_grpo", args, repetition, seconds, {"tokens": args.batch * args.response_length})


if __name__ == "__main__":
    main()
