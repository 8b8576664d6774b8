"""Shared by all tests: run-time checks of shapes, and one compiled program per configuration."""

import dataclasses
import functools
import os
import tempfile
import warnings

# Read when jax is imported: here, in the other worker and in child processes. What one has compiled all find.
# Compiling takes most of the time of the tests, and most of that is optimisation that only long runs repay.
UNOPTIMIZED = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
if "PYTEST_XDIST_WORKER" not in os.environ:
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # CI gives one to all its commands
        CACHE = tempfile.TemporaryDirectory()
        os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    flags = ["--xla_force_host_platform_device_count=8"]
    if "PGJAX_TEST_OPTIMIZED" not in os.environ:
        flags.append(UNOPTIMIZED)
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

import jax
import jaxtyping
import pytest

CHECKED = [
    *(f"pgjax.learning.{room}" for room in ("returns", "losses", "normalize", "rollout")),
    "pgjax.networks.distributions",
]
with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"):
    import pgjax
    from pgjax import alignment
    from pgjax.algorithms import algorithm_class
    from pgjax.core.metrics import numbers
    from pgjax.running.compile import forget_programs
    from pgjax.running.loop import train_chunk


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Those of many files in one process would come to more than it may map; the cache on disk has them."""
    yield
    forget_programs(15_000)


EXACTLY = {"xla_cpu_use_fusion_emitters": True}
"""Different programs of the same step give the same bits only where they are fused as a user's are."""


@pytest.fixture(scope="session")
def init():
    """(algorithm, key) -> state. Compiled once per program for the whole session, like the three below."""
    return jax.jit(lambda algorithm, key: algorithm.init(key), compiler_options=EXACTLY)


@pytest.fixture(scope="session")
def step():
    """(algorithm, state) -> (state, the figures of its metrics)."""

    def step(algorithm, state):
        state, metrics = algorithm.step(state)
        return state, numbers(metrics)

    return jax.jit(step)


@pytest.fixture(scope="session")
def train():
    return jax.jit(pgjax.train, compiler_options=EXACTLY)


@pytest.fixture(scope="session")
def chunk():
    def chunk(algorithm, state, num_iterations, max_iterations):
        state, metrics = train_chunk(algorithm, state, num_iterations, max_iterations)
        return state, numbers(metrics)

    return jax.jit(chunk, static_argnums=3, compiler_options=EXACTLY)


@pytest.fixture(scope="session")
def cartpole():
    return pgjax.make("CartPole-v1")


@pytest.fixture(scope="session")
def tiny_algorithm():
    """An algorithm so small that it costs nothing but its compilation: 6 iterations of 4 x 8 steps."""

    def make(cls, env, network=None, **fields):
        if hasattr(cls, "num_critics"):
            continuous = cls is not pgjax.DiscreteSAC
            network = network or pgjax.MLP(
                hidden=(8,), shared_torso=True, squash=continuous, state_dependent_std=continuous
            )
            replay = {"buffer_size": 64, "batch_size": 8, "warmup": 16, "total_steps": 6 * 32, "tau": 0.1}
            fields = {"num_steps": 1, "num_rounds": 8, "critic": pgjax.MLPCritic(hidden=(8,))} | replay | fields
        small = {
            "network": network or pgjax.MLP(hidden=(8,)),
            "num_envs": 4,
            "num_steps": 8,
        }
        smaller = {"num_epochs": 2, "num_minibatches": 2, "value_epochs": 2, "value_minibatches": 2}
        declared = {field.name for field in dataclasses.fields(cls)}
        small |= {name: value for name, value in smaller.items() if name in declared}
        kinds = ("", "value_", "critic_", "temperature_")
        rates = {f"{kind}learning_rate": 1e-2 for kind in kinds if f"{kind}learning_rate" in declared}
        fields = small | rates | fields
        return cls(env, **({"total_steps": 6 * fields["num_envs"] * fields["num_steps"]} | fields))

    return make


@pytest.fixture(scope="session")
def tiny_language_model():
    """A new one of some hundred parameters for the words of the grammar."""
    tokenizer = alignment.TOKENIZERS.make("grammar")
    network = alignment.Transformer(
        width=8, layers=1, num_heads=2, num_groups=1, mlp_width=8, context=20, vocab=tokenizer.vocab
    )
    return alignment.LanguageModel(network, tokenizer, network.init_text(jax.random.key(0)))


@pytest.fixture(scope="session")
def tiny_token_algorithm(tiny_language_model):
    """An algorithm over tokens by its name, as small: 6 iterations of 8 rows."""
    tokenizer = alignment.TOKENIZERS.make("sums")
    network = dataclasses.replace(tiny_language_model.network, vocab=tokenizer.vocab)
    sums_model = alignment.LanguageModel(network, tokenizer, network.init_text(jax.random.key(0)))

    def make(name, model=tiny_language_model, **fields):
        common = {"learning_rate": 1e-2, "batch_size": 8, "total_steps": 48} | fields
        if name in ("rlhf", "grpo", "rloo", "online-dpo"):
            common = {"num_epochs": 2, "num_minibatches": 2, "max_tokens": 5, "reward": "sentiment"} | common
            common |= {"group_size": 4} if name in ("grpo", "rloo") else {}
            reward = common.pop("reward")
            reward = alignment.REWARDS.make(reward) if isinstance(reward, str) else reward
            return algorithm_class(name)(model, reward, alignment.PROMPTS.make("grammar", examples=64), **common)
        if name == "lm":
            data = alignment.TEXTS.make("grammar", examples=64, length=8)
            common = {"total_steps": common["total_steps"] * 8} | {
                k: v for k, v in common.items() if k != "total_steps"
            }
            return alignment.LM(data=data, tokenizer=model.tokenizer, network=model.network, warmup=2, **common)
        if name == "sft":
            return alignment.SFT(model, alignment.COMPLETIONS.make("grammar", examples=64), warmup=2, **common)
        if name == "kto":
            return alignment.KTO(model, alignment.LABELS.make("grammar", examples=64), warmup=2, **common)
        if name == "process-reward-model":
            model = sums_model if model is tiny_language_model else model
            return alignment.ProcessRewardModel(model, alignment.STEPS.make("sums", examples=64), warmup=2, **common)
        data = alignment.PREFERENCES.make("grammar", examples=64)
        if name == "dpo":
            return alignment.DPO(model, data, warmup=2, **common)
        return alignment.RewardModel(model, data, warmup=2, references=8, **common)

    def quietly(*args, **kwargs):
        with warnings.catch_warnings():  # about sentences that are too long
            warnings.simplefilter("ignore")
            return make(*args, **kwargs)

    return quietly


@pytest.fixture(scope="session")
def tiny_ppo(tiny_algorithm):
    return functools.partial(tiny_algorithm, pgjax.PPO)


@pytest.fixture(scope="session")
def tiny(cartpole, tiny_ppo):
    return tiny_ppo(cartpole)
