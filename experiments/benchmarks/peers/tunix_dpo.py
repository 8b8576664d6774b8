"""Tunix's DPO: tokens trained per second.

    pip install google-tunix==0.1.7

The model, the data and the settings are those of `trl_dpo.py`. Its trainer evaluates the reference on every batch, for
which there is no switch.
"""

import argparse
import json
import time
from importlib import metadata
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType
from tunix.models.llama3.model import Llama3, ModelConfig  # type: ignore[import-not-found,unused-ignore]
from tunix.sft.dpo.dpo_trainer import (  # type: ignore[import-not-found,unused-ignore]
    DPOTrainer,
    DPOTrainingConfig,
    TrainingInput,
)


def batches(args: argparse.Namespace, num: int) -> list[Any]:
    """New prompts and answers, all of full length."""
    random = np.random.default_rng(num)

    def tokens(length: int) -> dict[str, np.ndarray]:
        shape = args.batch, length
        return {"ids": random.integers(args.vocab, size=shape), "mask": np.ones(shape, np.int32)}

    def batch() -> Any:
        lengths = {"prompt": args.prompt_length, "chosen": args.response_length, "rejected": args.response_length}
        rows = {name: tokens(length) for name, length in lengths.items()}
        return TrainingInput(**{f"{name}_{key}": x for name, row in rows.items() for key, x in row.items()})

    return [batch() for _ in range(num)]


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    sizes = ("width", "layers", "heads", "vocab", "batch", "prompt-length", "response-length")
    for name in (*sizes, "iterations", "repetitions"):
        made.add_argument(f"--{name}", type=int, required=True)
    args = made.parse_args()
    config = ModelConfig(
        num_layers=args.layers,
        vocab_size=args.vocab,
        embed_dim=args.width,
        hidden_dim=4 * args.width,
        num_heads=args.heads,
        head_dim=args.width // args.heads,
        num_kv_heads=args.heads,
        rope_theta=10_000,
        norm_eps=1e-6,
        weight_tying=True,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto, AxisType.Auto))
    with jax.set_mesh(mesh):
        policy, reference = (Llama3(config, rngs=nnx.Rngs(0)) for _ in range(2))
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.0))
        trainer = DPOTrainer(policy, reference, optimizer, DPOTrainingConfig(eval_every_n_steps=10**9, beta=0.1))
        trainer.is_managed_externally = True  # several calls of `train` are one training
        trainer.train(batches(args, 2))
        for repetition in range(args.repetitions):
            data = batches(args, args.iterations)
            start = time.perf_counter()
            trainer.train(data)  # returns when the last step is done
            seconds = time.perf_counter() - start
            tokens = args.iterations * 2 * args.batch * (args.prompt_length + args.response_length)
            found = {"repetition": repetition, "seconds": seconds, "tokens_per_second": tokens / seconds}
            versions = {"tunix": metadata.version("google-tunix")}
            print(json.dumps({"peer": "tunix_dpo"} | found | {"versions": versions}), flush=True)


if __name__ == "__main__":
    main()
