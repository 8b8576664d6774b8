"""TRL's PPO from rewards of whole responses: tokens trained per second.

    pip install torch==2.13.0 trl==1.12.0
    python trl_ppo.py --width 256 --layers 4 --heads 4 --vocab 1024 --batch 64 --prompt-length 32 --response-length 64

TRL 1.12.0 is the last release with a PPOTrainer (trl.experimental.ppo), in which it is that of 1.11.0 byte for byte.

An iteration samples `batch` responses, scores them, and learns from them. `tokens` counts the responses' tokens, each
once however many epochs it is trained for. To be mirrored:

- four models: policy, reference, critic and reward model, each a Llama of the given shape of its own, the latter two
  with a linear head for one number without bias. With `--reward rule` there is no reward model, but the share of even
  token ids in prompt and response, which costs nothing;
- sampling at temperature 1 from all tokens, with a cache of keys and values, the whole batch at once. The policy's log
  probabilities are those that it was sampled with; reference, critic and reward model go once over prompt and response;
- the reward of a token is -0.05 (log pi - log pi_ref), and of the last also the score; there is no penalty for a
  response that does not end, and rewards are not whitened;
- advantages by GAE, gamma 1, lambda 0.95, whitened over the batch;
- `epochs` passes over the batch in `minibatches` of whole sequences, shuffled in each; one gradient step each, without
  accumulation;
- the clipped loss, 0.2, plus 0.1 x half the clipped squared error of the critic, 0.2, each a mean over tokens; policy
  and critic go over prompt and response, no entropy bonus;
- AdamW, learning rate 3e-6 without a schedule, betas 0.9 and 0.999, epsilon 1e-8, no weight decay, no clipping of
  gradients, which the trainer never does;
- float32, no gradient checkpointing, no dropout.

The trainer computes its metrics in every iteration (entropy, KL, clip fractions and more) and keeps them; nothing is
printed, evaluated or saved. Gradients are accumulated over whole batches by its count, so that only one micro-batch
per minibatch gives as many gradient steps as asked for. The clock goes from the end of one iteration to the end of
another, so it covers all of sampling, scoring and learning.
"""

import argparse
import gc
import os
import sys
import tempfile
from contextlib import redirect_stdout
from types import SimpleNamespace
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from datasets import Dataset  # type: ignore[import-not-found,unused-ignore]
from llama import Clock, iterations_in_all, llama, parse, parser, random_tokens, report, tokenizer, torch
from transformers import (  # type: ignore[import-not-found,unused-ignore]
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PrinterCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found,unused-ignore]


class Rule(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """A rule in the shape of a reward model: what its backbone calls the last hidden state is the score so far."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.score = ShareOfEven(), torch.nn.Identity()


class ShareOfEven(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        tokens = torch.arange(1, 1 + input_ids.shape[1])
        share = (input_ids % 2 == 0).cumsum(1) / tokens
        return SimpleNamespace(hidden_states=[share[..., None]])


def config(args: argparse.Namespace, folder: str) -> PPOConfig:
    return PPOConfig(
        output_dir=folder,
        total_episodes=iterations_in_all(args) * args.batch,
        per_device_train_batch_size=args.batch,
        local_rollout_forward_batch_size=args.batch,
        num_mini_batches=args.minibatches,
        num_ppo_epochs=args.epochs,
        response_length=args.response_length,
        temperature=1.0,
        missing_eos_penalty=None,
        stop_token=None,
        kl_coef=0.05,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        gamma=1.0,
        lam=0.95,
        learning_rate=3e-6,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}


def main() -> None:
    made = parser(__doc__, warmup=1)
    made.add_argument("--epochs", type=int, default=4, help="passes over each batch")
    made.add_argument("--minibatches", type=int, default=1, help="gradient steps per pass; they divide the batch")
    made.add_argument("--reward", choices=["model", "rule"], default="model", help="what scores the responses")
    args = parse(made)
    prompts = random_tokens(args, iterations_in_all(args) * args.batch, args.prompt_length)
    scoring = llama(args, num_labels=1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = PPOTrainer(
            args=config(args, folder),
            processing_class=tokenizer(args.vocab),
            model=LlamaForCausalLM(llama(args)),
            ref_model=LlamaForCausalLM(llama(args)),
            reward_model=Rule() if args.reward == "rule" else LlamaForSequenceClassification(scoring),
            value_model=LlamaForSequenceClassification(scoring),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        gc.freeze()  # the trainer collects garbage twice an iteration, and need not look through what it imported
        trainer.train()
    for repetition, seconds in enumerate(clock.seconds(args.warmup, args.iterations)):
        report("trl_ppo", args, repetition, seconds, {"tokens": args.batch * args.response_length})


if __name__ == "__main__":
    main()
