"""The parts of `real_model.py`: what is measured of SmolLM2-135M-Instruct, and of a random model in GPT-2's shape."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgjax import alignment
from pgjax.alignment.generation import left_padded
from pgjax.alignment.models import LanguageModel
from pgjax.alignment.tokenizers import TOKENIZERS
from pgjax.running.config import to_config

PAD = 16
"""`<empty_output>`, one of the ids that were never trained: all of them have the same embedding."""
QUESTION = "The capital of France is"
PASSAGE = """\
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance or nature's changing course untrimm'd;
But thy eternal summer shall not fade
Nor lose possession of that fair thou owest;
Nor shall Death brag thou wander'st in his shade,
When in eternal lines to time thou growest:
So long as men can breathe or eyes can see,
So long lives this, and this gives life to thee.
(Sonnet 18, 1609)
"""
PROMPT, COMPLETION = 32, 32
"""Tokens of verses' halves and of sampled completions, at most."""


def our_model(folder: Path) -> LanguageModel:
    return alignment.language_model(folder, pad=PAD)


def their_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None  # so that all texts have full length
    return model


def logits(folder: Path) -> dict[str, Any]:
    """Both on the same weights, the passage also padded on the left."""
    import torch
    from transformers import AutoTokenizer

    model, theirs, tokenizer = our_model(folder), their_model(folder), AutoTokenizer.from_pretrained(folder)
    ids = model.tokenizer.encode(PASSAGE)
    compute = jax.jit(model.network.logits)
    tokens, mask = left_padded([ids, [PAD] * 7 + ids], PAD)
    mask[1, :7] = False
    ours, padded = compute(model.params, tokens[:1, 7:], mask[:1, 7:])[0], compute(model.params, tokens, mask)[:, 7:]
    with torch.no_grad():
        reference = theirs(torch.tensor([ids])).logits[0].numpy()
        start = torch.tensor([model.tokenizer.encode(QUESTION)])
        greedy = theirs.generate(start, do_sample=False, max_new_tokens=16)[0, start.shape[1] :].tolist()
    written = alignment.generate(
        model.network, model.params, start.numpy(), jax.random.key(0), 16, temperature=0.0, pad=PAD
    )

    def perplexity(logits: Any) -> float:
        log_prob = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))[jnp.arange(len(ids) - 1), jnp.array(ids[1:])]
        return float(jnp.exp(-jnp.mean(log_prob)))

    return {
        "tokens": len(ids),
        "same_ids": ids == tokenizer.encode(PASSAGE, add_special_tokens=False),
        "difference": float(np.abs(ours - reference).max()),
        "difference_if_padded": float(np.abs(padded - ours).max()),
        "largest_logit": float(np.abs(reference).max()),
        "same_most_probable": float(np.mean(np.argmax(ours, -1) == np.argmax(reference, -1))),
        "perplexity": perplexity(ours),
        "perplexity_of_transformers": perplexity(reference),
        "greedy": model.tokenizer.decode(written.tokens[0].tolist()),
        "greedy_is_that_of_transformers": written.tokens[0].tolist() == greedy,
    }


def decode(folder: Path, repetitions: int, prompt_length: int = 16, new: int = 64) -> dict[str, Any]:
    """Seconds of whole calls, the pass over the prompts included; all texts have full length."""
    import torch

    model, theirs = our_model(folder), their_model(folder)
    ids = model.tokenizer.encode(PASSAGE)[:prompt_length]
    found: dict[str, Any] = {"prompt": prompt_length, "new": new, "torch_threads": torch.get_num_threads()}
    for batch in (1, 64):
        tokens = np.array([ids] * batch)

        def ours(seed: int, tokens: Any = tokens) -> None:
            key = jax.random.key(seed)
            jax.block_until_ready(alignment.generate(model.network, model.params, tokens, key, new, pad=PAD))

        def reference(seed: int, tokens: Any = tokens) -> None:
            torch.manual_seed(seed)
            sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            text = theirs.generate(torch.tensor(tokens), max_new_tokens=new, use_cache=True, **sampled)
            assert text.shape == (len(tokens), prompt_length + new)

        found[f"batch {batch}"] = in_turns({"ours": ours, "transformers": reference}, repetitions)
    return found


def in_turns(calls: dict[str, Callable[[int], None]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each after a first call that compiles; between calls the threads of the last one go to sleep."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repetitions + 1):
        for name, call in calls.items():
            time.sleep(1.0)
            start = time.perf_counter()
            call(i)
            seconds[name].append(time.perf_counter() - start)
            print(name, f"{seconds[name][-1]:.2f} s", flush=True)
    return {name: each[1:] for name, each in seconds.items()}


def halves(verses: Path, tokenizer: Any) -> list[dict[str, str]]:
    """Verses of at least eight words, divided in their middle, that fit into the limits."""
    found = []
    for line in verses.read_text().splitlines():
        words = json.loads(line)["text"].split()
        middle = len(words) // 2
        record = {"prompt": " ".join(words[:middle]), "completion": "".join(f" {word}" for word in words[middle:])}
        lengths = len(tokenizer.encode(record["prompt"])), len(tokenizer.encode(record["completion"])) + 1
        if len(words) >= 8 and lengths[0] <= PROMPT and lengths[1] <= COMPLETION:
            found.append(record)
    return found


def fine_tuning(folder: Path, verses: Path, steps: int) -> alignment.SFT:
    model = our_model(folder)
    data = alignment.COMPLETIONS.of(halves(verses, model.tokenizer), max_prompt=PROMPT, max_completion=COMPLETION)
    return alignment.SFT(model, data, 8 * steps, batch_size=8, learning_rate=1e-4, warmup=10)


def brevity(tokens: jax.Array, mask: jax.Array, prompt: jax.Array) -> jax.Array:
    """Minus the share of the room that a completion takes: a reward that costs nothing."""
    return -jnp.mean(mask.astype(jnp.float32), axis=1)


def rlhf(model: LanguageModel, prompts: list[dict[str, str]]) -> alignment.RLHF:
    """Sixteen completions, four epochs of four minibatches, each in two parts."""
    data = alignment.PROMPTS.of(prompts, max_prompt=PROMPT)
    return alignment.RLHF(
        model,
        brevity,
        data,
        total_steps=16 * 1000,
        batch_size=16,
        micro_batches=2,
        max_tokens=COMPLETION,
        learning_rate=1e-5,
    )


def smollm2(folder: Path, verses: Path) -> alignment.RLHF:
    model = our_model(folder)
    return rlhf(model, halves(verses, model.tokenizer))


def gpt2(verses: Path) -> alignment.RLHF:
    """Random weights in the shape of GPT-2 small, over bytes: what they say costs as much as if it made sense."""
    network = alignment.Transformer(
        width=768,
        layers=12,
        num_heads=12,
        num_groups=12,
        mlp_width=3072,
        context=1024,
        positions="learned",
        norm="layer",
        gated=False,
        activation="gelu",
        biases="all",
        vocab=50_257,
    )
    tokenizer = TOKENIZERS.make("bytes")
    model = LanguageModel(network, tokenizer, jax.jit(network.init_text)(jax.random.key(0)))
    texts = [json.loads(line)["text"][:PROMPT] for line in verses.read_text().splitlines()[:1000]]
    return rlhf(model, [{"prompt": text} for text in texts if text.isascii()])


@jax.jit
def init(algorithm: Any, key: jax.Array) -> Any:
    return algorithm.init(key)


def compiled(algorithm: Any) -> tuple[Any, float]:
    """A program (algorithm, state) -> (state, metrics) that takes the state's memory, and the seconds to make it."""
    step = jax.jit(lambda algorithm, state: algorithm.step(state), donate_argnums=1)
    start = time.perf_counter()
    program = step.lower(algorithm, jax.eval_shape(init, algorithm, jax.random.key(0))).compile()
    return program, time.perf_counter() - start


def costs(algorithm: Any, tokens: int, operations: float, repetitions: int) -> dict[str, Any]:
    """Of one iteration: seconds, and memory by XLA's analysis and as the process saw it.

    `operations` are those for each token and weight.
    """
    program, seconds_compile = compiled(algorithm)
    memory = program.memory_analysis()
    state = init(algorithm, jax.random.key(0))
    network, weights = algorithm.model.network, sum(x.size for x in jax.tree.leaves(algorithm.model.params))
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program(algorithm, state))
        seconds.append(time.perf_counter() - start)
        print(f"{seconds[-1]:.2f} s", flush=True)
    return {
        "weights": weights,
        "key_value_width": network.layers * network.num_groups * network.depth,
        "tokens": tokens,
        "operations": operations * weights * tokens,
        "seconds": seconds[1:],
        "seconds_compile": seconds_compile,
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "config": to_config(algorithm),
    }


def sft_step(algorithm: alignment.SFT, repetitions: int) -> dict[str, Any]:
    rows = algorithm.data.train
    tokens = algorithm.batch_size * (rows.prompt.shape[1] + rows.completion.shape[1])
    return costs(algorithm, tokens, 6.0, repetitions)


def iteration(algorithm: alignment.RLHF, repetitions: int) -> dict[str, Any]:
    tokens = algorithm.batch_size * (algorithm.data.train.prompt.shape[1] + algorithm.max_tokens)
    return costs(algorithm, tokens, operations_of_rlhf(algorithm.num_epochs), repetitions)


def operations_of_rlhf(epochs: int) -> float:
    """Per token and weight of one of the models: 2 for a pass, 6 for a gradient (Kaplan et al., 2020, section 2.1).

    A token is sampled, read by policy, critic and reference, and learned from by policy and critic in every epoch.
    """
    return 2.0 + 3 * 2.0 + epochs * 2 * 6.0


def tuning(algorithm: alignment.SFT) -> dict[str, Any]:
    """The loss on held-out verses while it trains, and greedy completions of three of them before and after."""
    program, _ = compiled(algorithm)
    evaluate = jax.jit(lambda algorithm, state: algorithm.evaluate(state, jax.random.key(1), 128))
    state = init(algorithm, jax.random.key(0))
    curve, losses, texts = [], [], [completions(algorithm, state)]
    start = time.perf_counter()
    for i in range(algorithm.num_iterations + 1):
        if i % 10 == 0:
            scores = evaluate(algorithm, state)
            curve.append([i, float(scores["loss"]), float(scores["accuracy"])])
            print(curve[-1], flush=True)
        if i < algorithm.num_iterations:
            state, metrics = program(algorithm, state)
            losses.append(float(metrics["loss"]))
    seconds = time.perf_counter() - start
    texts.append(completions(algorithm, state))
    samples = [[prompt, before, after] for (prompt, before), (_, after) in zip(*texts, strict=True)]
    data = algorithm.data
    return {
        "held_out": curve,
        "losses": losses,
        "samples": samples,
        "seconds": seconds,
        "examples": [len(rows.prompt) for rows in (data.train, data.held_out)],
        "data_sha256": data.source.sha256,
        "config": to_config(algorithm),
    }


def completions(algorithm: alignment.SFT, state: Any) -> list[tuple[str, str]]:
    """Of the first held-out prompts, the most probable token each time."""
    model = algorithm.language_model(state)
    rows, tokenizer = algorithm.data.held_out, model.tokenizer
    tokens, mask = rows.prompt[:3], rows.prompt_mask[:3]
    ends = {"eos": tokenizer.eos, "pad": tokenizer.pad}
    key = jax.random.key(0)
    found = alignment.generate(model.network, state.params, tokens, key, COMPLETION, temperature=0.0, mask=mask, **ends)
    prompts = [row[real].tolist() for row, real in zip(np.asarray(tokens), np.asarray(mask), strict=True)]
    written = [row[real].tolist() for row, real in zip(np.asarray(found.tokens), np.asarray(found.mask), strict=True)]
    return [(tokenizer.decode(a), tokenizer.decode(b)) for a, b in zip(prompts, written, strict=True)]
