"""What the peers that train or sample language models share: their arguments, the model, and the line they print.

The model is a Llama of random weights in float32: RMS norm (epsilon 1e-6), rotary positions (base 10,000) that pair
the two halves of each head, as many key and value heads as query heads, a gated MLP of `mlp_width` (4 x width unless
given) with SiLU, no biases, no dropout, input and output embeddings tied. No token ends a sequence: all have the
lengths that are asked for, so nothing is padded. Token ids are uniform in [0, vocab).
"""

import argparse
import itertools
import json
import os
import time
from importlib.metadata import version
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}

import torch  # type: ignore[import-not-found,unused-ignore]
from tokenizers import Tokenizer, models, pre_tokenizers  # type: ignore[import-not-found,unused-ignore]
from transformers import (  # type: ignore[import-not-found,unused-ignore]
    LlamaConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
)


def parser(about: str | None, warmup: int) -> argparse.ArgumentParser:
    """The arguments that every one of these peers takes."""
    made = argparse.ArgumentParser(
        description=(about or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--width", type=int, default=256, help="width of the residual stream")
    made.add_argument("--layers", type=int, default=4, help="blocks of attention and MLP")
    made.add_argument("--heads", type=int, default=4, help="attention heads; they divide width")
    made.add_argument("--mlp-width", type=int, help="hidden units of each MLP; 4 x width unless given")
    made.add_argument("--vocab", type=int, default=1024, help="tokens")
    made.add_argument("--batch", type=int, default=64, help="sequences per iteration")
    made.add_argument("--prompt-length", type=int, default=32, help="tokens of each prompt")
    made.add_argument("--response-length", type=int, default=64, help="tokens of each response")
    made.add_argument("--warmup", type=int, default=warmup, help="iterations before the clock starts")
    made.add_argument("--iterations", type=int, default=5, help="iterations of each timed repetition")
    made.add_argument("--repetitions", type=int, default=3, help="timed repetitions, one line each")
    made.add_argument("--threads", type=int, default=2, help="threads of torch")
    made.add_argument("--seed", type=int, default=0)
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments as given, with torch's threads and seed set by them."""
    args = made.parse_args()
    if args.warmup < 1:
        made.error(f"--warmup {args.warmup}: at least one iteration warms up")
    args.mlp_width = args.mlp_width or 4 * args.width
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


def llama(args: argparse.Namespace, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.width,
        intermediate_size=args.mlp_width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=args.prompt_length + args.response_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Ids 0 to vocab - 1 are words between white space; padding and the end have an id that no prompt holds and no
    model emits."""
    words = {str(index): index for index in range(vocab)}
    made = Tokenizer(models.WordLevel(words, unk_token="0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<end>", eos_token="<end>")


def random_tokens(args: argparse.Namespace, sequences: int, length: int) -> list[list[int]]:
    return torch.randint(args.vocab, (sequences, length)).tolist()


def iterations_in_all(args: argparse.Namespace) -> int:
    return args.warmup + args.repetitions * args.iterations


def quiet(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Settings of TRL's trainers that are the same for all: float32 on the CPU, a constant learning rate without weight
    decay, batches as asked for; nothing is logged or saved."""
    return {
        "output_dir": folder,
        "max_steps": iterations_in_all(args),
        "per_device_train_batch_size": args.batch,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": args.seed,
    }


class Clock(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Notes when each step of a trainer ended; a repetition lasts from the end of one step to that of another."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self, warmup: int, iterations: int) -> list[float]:
        """Of each repetition."""
        marks = self.ends[warmup - 1 :: iterations]
        return [after - before for before, after in itertools.pairwise(marks)]


def report(peer: str, args: argparse.Namespace, repetition: int, seconds: float, tokens: dict[str, int]) -> None:
    """One line of JSON. Each count of tokens is per iteration; their rates are of the whole repetition."""
    rates = {f"{name}_per_second": args.iterations * count / seconds for name, count in tokens.items()}
    packages = [*(["trl"] if peer.startswith("trl") else []), "transformers", "torch"]
    versions = {name: version(name) for name in packages}
    about = {"peer": peer, "repetition": repetition, "seconds": seconds}
    print(json.dumps(about | tokens | rates | {"settings": vars(args), "versions": versions}), flush=True)
