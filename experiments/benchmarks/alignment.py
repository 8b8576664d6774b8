"""Beside TRL, tunix and transformers: tokens trained and sampled per second, same model, batch and machine, in turns.

    python experiments/benchmarks/alignment.py --trl ENV/bin/python --ppo ENV/bin/python --tunix ENV/bin/python \
        --transformers ENV/bin/python

The arguments are Pythons of environments of their own, in which the peers of `peers/trl_sft.py`, `trl_dpo.py`,
`trl_grpo.py`, `trl_ppo.py`, `tunix_dpo.py` and `transformers_generate.py` run (their docstrings say what to install,
and every setting that is mirrored here). `--what` measures some of them again, which need their environments only, and
keeps the figures of the others. Ours and the peer take turns, each time a peer's process with its warm-up and one timed
repetition; compilation is apart. Weights are random, all sequences have full length, float32.

Also the share that SFT has of the rate at which large matrix products run on all cores at the same time, counting 6
operations per weight and token (Kaplan et al., 2020, section 2.1) and 12 layers L width for attention.

Writes alignment.json and alignment.md to experiments/results/benchmarks.
"""

import dataclasses
import json
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from harness import RESULTS, compiled_iterations, markdown, write_report

from pgjax.alignment import (
    COMPLETIONS,
    DPO,
    GRPO,
    PREFERENCES,
    PROMPTS,
    RLHF,
    SFT,
    LanguageModel,
    Transformer,
    generate,
)
from pgjax.alignment.tokenizers import Words
from pgjax.running.config import to_config

PEERS = Path(__file__).parent / "peers"


class Shape(NamedTuple):
    name: str
    width: int
    layers: int
    vocab: int
    batch: int
    prompt: int
    response: int


SHAPES = [
    Shape("30 k parameters", 32, 2, 64, 32, 8, 16),
    Shape("0.2 M parameters", 64, 2, 256, 64, 16, 32),
    Shape("5 M parameters", 256, 4, 1024, 32, 32, 64),
]
EPOCHS, MINIBATCHES = 4, 4
What: TypeAlias = Literal["SFT", "DPO", "DPO-tunix", "GRPO", "PPO", "sampling"]


@dataclasses.dataclass(frozen=True)
class Options:
    trl: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with TRL")] = None
    ppo: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with the last TRL that has PPO")] = None
    tunix: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with tunix")] = None
    transformers: Annotated[Path | None, tyro.conf.arg(help="Python of an environment with transformers")] = None
    what: Annotated[tuple[What, ...], tyro.conf.arg(help="what is measured")] = get_args(What)
    turns: Annotated[int, tyro.conf.arg(help="timed repetitions of each")] = 5
    iterations: Annotated[int, tyro.conf.arg(help="iterations of each repetition")] = 5
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = RESULTS


class Ours(NamedTuple):
    run: Callable[[], None]
    """One repetition."""
    seconds_compile: float
    config: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Endless:
    """A tokenizer whose end of text no model has, so that all completions have full length."""

    vocab: int
    pad = 0

    @property
    def eos(self) -> int:
        return self.vocab

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def language_model(shape: Shape, endless: bool = False) -> LanguageModel:
    network = Transformer(
        width=shape.width,
        layers=shape.layers,
        num_heads=4,
        num_groups=4,
        mlp_width=4 * shape.width,
        context=shape.prompt + shape.response,
        norm_epsilon=1e-6,
        vocab=shape.vocab,
    )
    tokenizer = Endless(shape.vocab) if endless else Words(tuple(str(i) for i in range(shape.vocab - 2)))
    return LanguageModel(network, tokenizer, network.init_text(jax.random.key(0)))


def rows(shape: Shape, num: int, *widths: int) -> list[list[list[int]]]:
    random = np.random.default_rng(0)
    return [[random.integers(shape.vocab - 2, size=width).tolist() for width in widths] for _ in range(num)]


def sft(shape: Shape, iterations: int) -> Ours:
    """The last token of a response is EOS, which has a loss as any other."""
    texts = rows(shape, 40 * shape.batch, shape.prompt, shape.response - 1)
    records = [{"prompt": prompt, "completion": completion} for prompt, completion in texts]
    limits = {"max_prompt": shape.prompt, "max_completion": shape.response, "held_out": 0.01}
    algorithm = SFT(
        language_model(shape),
        COMPLETIONS.of(records, **limits),
        total_steps=10**6 * shape.batch,
        batch_size=shape.batch,
        lr_schedule="constant",
        learning_rate=1e-4,
        warmup=0,
    )
    return repetition(algorithm, iterations)


def dpo(shape: Shape, iterations: int) -> Ours:
    """What the reference says is computed once, as by the peer."""
    texts = rows(shape, 40 * shape.batch, shape.prompt, shape.response - 1, shape.response - 1)
    records = [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in texts]
    limits = {"max_prompt": shape.prompt, "max_completion": shape.response, "held_out": 0.01}
    algorithm = DPO(
        language_model(shape),
        PREFERENCES.of(records, **limits),
        total_steps=10**6 * shape.batch,
        batch_size=shape.batch,
        lr_schedule="constant",
        learning_rate=1e-4,
        max_grad_norm=1.0,
        warmup=0,
    )
    return repetition(algorithm, iterations)


def grpo(shape: Shape, iterations: int) -> Ours:
    """With the reward and the penalty of the peer."""
    records = [{"prompt": prompt} for (prompt,) in rows(shape, 40 * shape.batch, shape.prompt)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the gradient of k3
        algorithm = GRPO(
            language_model(shape, endless=True),
            share_of_even,
            PROMPTS.of(records, max_prompt=shape.prompt, held_out=0.01),
            total_steps=10**6 * shape.batch,
            batch_size=shape.batch,
            max_tokens=shape.response,
            beta=0.05,
            kl="k3",
            eos_penalty=0.0,
            learning_rate=3e-6,
            lr_schedule="constant",
        )
    return repetition(algorithm, iterations)


def ppo(shape: Shape, iterations: int) -> Ours:
    """With a reward that costs nothing, as the peer's: the share of even tokens."""
    records = [{"prompt": prompt} for (prompt,) in rows(shape, 40 * shape.batch, shape.prompt)]
    algorithm = RLHF(
        language_model(shape, endless=True),
        share_of_even,
        PROMPTS.of(records, max_prompt=shape.prompt, held_out=0.01),
        total_steps=10**6 * shape.batch,
        batch_size=shape.batch,
        max_tokens=shape.response,
        num_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        beta=0.05,
        vf_coef=0.1,
        clip_value=True,
        eos_penalty=0.0,
        normalize_advantage="batch",
        learning_rate=3e-6,
        lr_schedule="constant",
        max_grad_norm=float("inf"),
    )
    return repetition(algorithm, iterations)


def share_of_even(tokens: jax.Array, mask: jax.Array, prompt: jax.Array) -> jax.Array:
    return jnp.mean(tokens % 2 == 0, axis=1)


def repetition(algorithm: Any, iterations: int) -> Ours:
    program = compiled_iterations(algorithm, 1, iterations)
    states = [program.state]

    def run() -> None:
        state, report = program.run(states.pop())
        states.append(state)
        jax.block_until_ready((state, report))

    run()
    return Ours(run, program.seconds_compile, to_config(algorithm))


def sampling(shape: Shape, iterations: int) -> Ours:
    model = language_model(shape)
    prompts = [jnp.array([row[0] for row in rows(shape, shape.batch, shape.prompt)]) for _ in range(iterations)]

    @jax.jit
    def sample(params: Any, tokens: jax.Array, key: jax.Array) -> Any:
        return generate(model.network, params, tokens, key, shape.response)

    start = time.perf_counter()
    compiled = sample.lower(model.params, prompts[0], jax.random.key(0)).compile()
    seconds = time.perf_counter() - start

    def run() -> None:
        for i, tokens in enumerate(prompts):
            jax.block_until_ready(compiled(model.params, tokens, jax.random.key(i)))

    run()
    return Ours(run, seconds)


def of_peer(python: Path, script: str, shape: Shape, iterations: int, *more: str) -> tuple[float, dict[str, Any]]:
    """Tokens per second of one repetition, and what the peer says of it."""
    sizes = {"width": shape.width, "layers": shape.layers, "heads": 4, "vocab": shape.vocab, "batch": shape.batch}
    sizes |= {"prompt-length": shape.prompt, "response-length": shape.response}
    sizes |= {"iterations": iterations, "repetitions": 1}
    flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    command = [str(python), str(PEERS / script), *flags, *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    line = json.loads(done.stdout.splitlines()[-1])
    return line["tokens_per_second"], {"versions": line["versions"]}


def measured(options: Options, name: str, shape: Shape) -> dict[str, Any]:
    make, python, script, per_iteration, more = {
        "SFT": (sft, options.trl, "trl_sft.py", shape.batch * (shape.prompt + shape.response), ()),
        "DPO": (dpo, options.trl, "trl_dpo.py", 2 * shape.batch * (shape.prompt + shape.response), ()),
        "DPO-tunix": (dpo, options.tunix, "tunix_dpo.py", 2 * shape.batch * (shape.prompt + shape.response), ()),
        "GRPO": (grpo, options.trl, "trl_grpo.py", shape.batch * shape.response, ()),
        "PPO": (
            ppo,
            options.ppo,
            "trl_ppo.py",
            shape.batch * shape.response,
            ("--epochs", str(EPOCHS), "--minibatches", str(MINIBATCHES), "--reward", "rule"),
        ),
        "sampling": (sampling, options.transformers, "transformers_generate.py", shape.batch * shape.response, ()),
    }[name]
    if python is None:
        raise SystemExit(f"{name} needs the environment of {script}")
    ours = make(shape, options.iterations)
    rates: list[list[float]] = [[], []]
    versions: dict[str, Any] = {}
    for _ in range(options.turns):
        start = time.perf_counter()
        ours.run()
        rates[0].append(options.iterations * per_iteration / (time.perf_counter() - start))
        rate, versions = of_peer(python, script, shape, options.iterations, *more)
        rates[1].append(rate)
    figures = {"ours": rates[0], "peer": rates[1], "seconds_compile": ours.seconds_compile} | versions
    print(name, shape.name, [round(float(np.median(r))) for r in rates], flush=True)
    return {"what": name, "shape": shape._asdict(), "config": ours.config} | figures


def operations(shape: Shape) -> float:
    """Floating-point operations of a gradient, per token."""
    per_layer = 4 * shape.width**2 + 3 * shape.width * 4 * shape.width
    attention = 12 * shape.layers * (shape.prompt + shape.response) * shape.width
    return 6.0 * (shape.layers * per_layer + shape.width * shape.vocab) + attention


def products_per_second(size: int = 1024, times: int = 20) -> float:
    """Operations of large matrix products on all devices at the same time, the best of a few rounds."""
    product = jax.jit(lambda x: x @ x / size)
    squares = [jax.device_put(jnp.ones((size, size)), device) for device in jax.devices()]
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(times):
            squares = [product(x) for x in squares]
        jax.block_until_ready(squares)
        best = max(best, 2.0 * size**3 * times * len(squares) / (time.perf_counter() - start))
    return best


def main(options: Options) -> None:
    kept = options.out / "alignment.json"
    before = json.loads(kept.read_text()) if kept.exists() else {"cases": []}
    found = [each for each in before["cases"] if each["what"] not in options.what]
    found += [measured(options, name, shape) for shape in SHAPES for name in options.what]
    places = [(shape.name, what) for shape in SHAPES for what in get_args(What)]
    found.sort(key=lambda each: places.index((each["shape"]["name"], each["what"])))
    lines = []
    peak = products_per_second() if "SFT" in options.what else before["operations_per_second_of_products"]
    for each in found:
        ours, peer = (float(np.median(each[side])) for side in ("ours", "peer"))
        ratio = np.array(each["ours"]) / np.array(each["peer"])
        versions = ", ".join(f"{name} {version}" for name, version in each["versions"].items() if name != "torch")
        turns = f"{np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f})"
        share = f"{100 * ours * operations(Shape(**each['shape'])) / peak:.0f} %" if each["what"] == "SFT" else ""
        figures = [f"{ours:,.0f}", f"{peer:,.0f}", turns, share, f"{each['seconds_compile']:.1f}"]
        lines.append([each["what"].removesuffix("-tunix"), each["shape"]["name"], versions, *figures])
    header = [
        "",
        "model",
        "peer",
        "ours, tokens/s",
        "peer, tokens/s",
        "ratio of turns",
        "our share of products",
        "our compilation, s",
    ]
    table = f"Medians of {options.turns} turns, float32, random weights.\n\n" + markdown(header, lines, 3)
    write_report(options.out, table, None, {"cases": found, "operations_per_second_of_products": peak})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
