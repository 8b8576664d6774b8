"""Where RLHF should end is known exactly: the frontier of reward against KL divergence, and what each KL term leads to.

    python experiments/exact_frontier.py

The frontier: completions of exactly six of six words can be enumerated, all 46,656. The reference is a Markov chain
inside a transformer, the reward counts a word, and the best policy for a weight beta of the KL divergence is
pi*(y) = pi_ref(y) exp(r(y) / beta) / Z, which has E[r] - beta KL(pi*, pi_ref) = beta log Z. No policy with a KL
divergence of K earns more than R(K) = min_beta beta (log Z + K). RLHF is trained for several beta and seeds, and each
policy is evaluated over all completions.

The bandit, one of eight arms, is in `kl_bandit.py`: gradient ascent with each estimator of the KL divergence in the
reward or in the loss.

Writes exact_frontier.json (configs and every seed's figures), exact_frontier.md (tables) and exact_frontier.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, write_report
from kl_bandit import ARMS, BETA, PLACEMENTS, Bandit, bandit, total_variation
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

import pgjax
from pgjax import alignment
from pgjax.alignment.models import TEXT_NETWORKS, LanguageModel, Prompt, completion_logits
from pgjax.alignment.tokenizers import Words
from pgjax.networks.transformer import Transformer
from pgjax.running.config import to_config

TOKENIZER = Words(("a", "b", "c", "d", "e", "f"))
V, T = len(TOKENIZER.words), 6
"""Words, and tokens of a completion."""
START = TOKENIZER.eos
"""The token of an empty prompt."""
CHAIN = np.random.default_rng(0).dirichlet(np.ones(V), V + 1)
"""P(next word | word), `[V + 1, V]`; the last row is that after `START`."""
NEVER = -30.0
"""The logit of what no word is followed by: EOS and PAD."""
COMPLETIONS = np.stack(np.meshgrid(*[np.arange(V)] * T, indexing="ij"), axis=-1).reshape(-1, T)
REF_LOG_PROB = np.log(CHAIN)[np.pad(COMPLETIONS[:, :-1], ((0, 0), (1, 0)), constant_values=START), COMPLETIONS].sum(1)
REWARD = np.sum(COMPLETIONS == 0, axis=1).astype(float)
REF_REWARD = float(np.exp(REF_LOG_PROB) @ REWARD)


@dataclasses.dataclass(frozen=True)
class Options:
    betas: Annotated[tuple[float, ...], tyro.conf.arg(help="weights of the KL term, descending")] = (
        2,
        1,
        0.5,
        0.3,
    )
    seeds: Annotated[int, tyro.conf.arg(help="seeds per weight")] = 8
    iterations: Annotated[int, tyro.conf.arg(help="iterations of RLHF")] = 120
    steps: Annotated[int, tyro.conf.arg(help="gradient steps on the bandit")] = 20_000
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def count(tokens: jax.Array, mask: jax.Array, prompt: jax.Array) -> jax.Array:
    """How often the first word occurs."""
    return jnp.sum((tokens == 0) & mask, axis=1)


def reference() -> LanguageModel:
    """The chain as a transformer: its blocks add nothing to the stream yet, so that at each token it is a multiple of a
    unit vector, and the unembedding makes a row of the chain of that."""
    network = Transformer(width=32, mlp_width=64, context=T + 1, vocab=TOKENIZER.vocab, tied=False)
    params = network.init_text(jax.random.key(0))
    for name in ("attended", "down"):
        params["blocks"][name]["kernel"] = jnp.zeros_like(params["blocks"][name]["kernel"])
    params["embed"] = jnp.eye(network.vocab, network.width)
    length = network.hidden(params, jnp.zeros((1, 1), jnp.int32))[0, 0, 0]
    logits = np.full((network.vocab, network.vocab), NEVER)
    logits[: V + 1, :V] = np.log(CHAIN)
    params["unembed"] = jnp.zeros_like(params["unembed"]).at[:, : network.vocab].set(logits.T / length)
    return LanguageModel(network, TOKENIZER, params)


def sampling(cls: Any, iterations: int, batch_size: int = 256, **fields: Any) -> Any:
    """A method that samples completions of the reference and is told their reward."""
    prompts = alignment.PROMPTS.of([{"prompt": ""}] * batch_size, held_out=0)
    common = {"batch_size": batch_size, "max_tokens": T, "learning_rate": 3e-3, "eos_penalty": 0.0}
    common |= {"num_epochs": 4, "num_minibatches": 2}
    return cls(reference(), count, prompts, batch_size * iterations, **(common | fields))


def rlhf(iterations: int, batch_size: int = 256) -> alignment.RLHF:
    """Advantages are not normalised: at the optimum they vanish, and so does their noise."""
    return sampling(alignment.RLHF, iterations, batch_size, normalize_advantage="none")


def train(algorithm: Any, betas: tuple[float, ...], keys: jax.Array) -> Any:
    """The parameters of all policies, `[betas * keys, ...]`, as one mapped program."""

    def member(beta: jax.Array, key: jax.Array) -> Any:
        state, _ = pgjax.train(dataclasses.replace(algorithm, beta=beta), key)
        return algorithm.language_model(state).params

    return jax.jit(jax.vmap(member))(np.repeat(np.float32(betas), len(keys)), jnp.tile(keys, len(betas)))


def log_probs(network: Transformer, policies: Any) -> np.ndarray:
    """Of all completions under each policy, `[policies, completions]`."""

    def of_some(params: Any, tokens: jax.Array) -> jax.Array:
        prompt = Prompt(jnp.full((len(tokens), 1), START), jnp.ones((len(tokens), 1), bool))
        log_prob = jax.nn.log_softmax(completion_logits(network, params, prompt, tokens))
        return jnp.take_along_axis(log_prob, tokens[..., None], axis=-1).sum(axis=(1, 2))

    @jax.jit
    def of_all(policies: Any) -> jax.Array:
        parts = jnp.asarray(COMPLETIONS).reshape(V, -1, T)
        return jax.lax.map(lambda params: jax.lax.map(lambda part: of_some(params, part), parts), policies)

    return np.asarray(of_all(policies), float).reshape(-1, len(COMPLETIONS))


def reward_and_kl(log_prob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[r] and KL(pi, pi_ref) from log-probabilities `[..., completions]`."""
    probability = np.exp(log_prob)
    return probability @ REWARD, np.sum(probability * (log_prob - REF_LOG_PROB), axis=-1)


def log_z(beta: float) -> float:
    return float(logsumexp(REF_LOG_PROB + REWARD / beta))


def optimum(beta: float) -> tuple[np.ndarray, np.ndarray]:
    """E[r] and KL of pi*."""
    return reward_and_kl(REF_LOG_PROB + REWARD / beta - log_z(beta))


def frontier(kl: float) -> float:
    """R(K)."""

    def bound(log_beta: float) -> float:
        return np.exp(log_beta) * (log_z(np.exp(log_beta)) + kl)

    return float(minimize_scalar(bound, bounds=np.log([1e-3, 1e3]), method="bounded", options={"xatol": 1e-9}).fun)


class Found(NamedTuple):
    """Of the trained policies, `[betas, seeds]`."""

    reward: np.ndarray
    kl: np.ndarray
    above_frontier: np.ndarray
    """E[r] - R(KL)."""
    of_frontier: np.ndarray
    """(E[r] - E_ref[r]) / (R(KL) - E_ref[r]): the share of what can be gained with this KL divergence."""
    of_objective: np.ndarray
    """(E[r] - beta KL - E_ref[r]) / (beta log Z - E_ref[r]): the share of what the objective can gain."""
    elsewhere: np.ndarray
    """The probability of other completions, those with EOS or PAD, which the others are without."""


def evaluated(network: Transformer, policies: Any, betas: tuple[float, ...]) -> Found:
    log_prob = log_probs(network, policies).reshape(len(betas), -1, len(COMPLETIONS))
    total = logsumexp(log_prob, axis=-1, keepdims=True)
    reward, kl = reward_and_kl(log_prob - total)
    beta, best = np.array(betas)[:, None], np.vectorize(frontier)(kl)
    gained, most = reward - REF_REWARD, beta * np.vectorize(log_z)(beta) - REF_REWARD
    return Found(
        reward,
        kl,
        above_frontier=reward - best,
        of_frontier=gained / (best - REF_REWARD),
        of_objective=(gained - beta * kl) / most,
        elsewhere=-np.expm1(total[..., 0]),
    )


def spread(x: np.ndarray, digits: int = 3) -> str:
    return f"{x.mean():.{digits}f} [{x.min():.{digits}f}, {x.max():.{digits}f}]"


def frontier_table(options: Options, found: Found) -> str:
    header = ["best E[r]", "its KL", "E[r]", "KL", "least share of the frontier", "least share of the objective"]
    rows = []
    for i, beta in enumerate(options.betas):
        best = [f"{x:.3f}" for x in optimum(beta)]
        shares = [f"{100 * x[i].min():.2f} %" for x in (found.of_frontier, found.of_objective)]
        rows.append([f"{beta:g}", *best, spread(found.reward[i]), spread(found.kl[i]), *shares])
    return (
        f"RLHF and the optimum; means over {options.seeds} seeds, with the least and the largest:\n\n"
        + markdown(["beta", *header], rows)
        + f"\n{options.iterations} iterations of 256 completions, from E[r] = {REF_REWARD:.3f}. The share of the "
        "frontier is the gain in reward over\nthe largest with the same KL divergence; that of the objective is the "
        "gain in E[r] - beta KL over the largest.\nE[r] less the frontier is "
        f"{found.above_frontier.max():.1e} at most. E[r] and KL grow with every smaller beta for {monotone(found)} of "
        f"{options.seeds} seeds.\nOther completions have a probability of {np.abs(found.elsewhere).max():.0e} at most, "
        "which is the rounding of float32.\n"
    )


def monotone(found: Found) -> int:
    """For how many seeds E[r] and KL grow from one beta to the next."""
    grow = [np.all(np.diff(x, axis=0) > 0, axis=0) for x in (found.reward, found.kl)]
    return int(np.sum(grow[0] & grow[1]))


def bandit_table(options: Options, ended: Bandit) -> str:
    header = ["to pi*", "to the best with KL(pi_ref, pi)", "to the one without a KL term"]
    targets = [ended.tilted, ended.forward, ended.unregularised[-1]]
    rows = [
        [f"{name} in the {place}", gradient, *(f"{total_variation(policies[-1], x):.1e}" for x in targets)]
        for ((name, place), gradient), policies in zip(PLACEMENTS.items(), ended.policies.values(), strict=True)
    ]
    only_best = np.eye(ARMS)[ended.reward.argmax()]
    return (
        f"A bandit of {ARMS} arms with beta = {BETA:g}; total variation distances after {options.steps:,} steps along "
        "exact mean gradients:\n\n"
        + markdown(["KL term", "mean gradient is that of", *header], rows, 2)
        + "\npi* = pi_ref exp(r / beta) / Z. Without a KL term the distance to the best arm alone is "
        f"{total_variation(ended.unregularised[-1], only_best):.0e}.\nk2 and k3 in the reward lead to another arm "
        "alone, k3 until float32 overflows.\n"
    )


def plot(options: Options, found: Found, ended: Bandit, path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    rewards, kls = np.array([optimum(beta) for beta in np.geomspace(0.1, 100, 400)]).T
    left.plot(kls, rewards, color="black", linewidth=1, label="frontier")
    for beta, reward, kl in zip(options.betas, found.reward, found.kl, strict=True):
        dots = left.plot(kl, reward, "o", markersize=4, alpha=0.6, label=f"RLHF, beta = {beta:g}")[0]
        best_reward, best_kl = optimum(beta)
        left.plot(best_kl, best_reward, "+", color=dots.get_color(), markersize=14)
    left.set(xlabel="KL(pi, pi_ref) of a completion", ylabel="E[r]", title="RLHF and the optimum for its beta (+)")
    left.legend(frameon=False)
    for (name, place), policies in ended.policies.items():
        distance = total_variation(policies[1:], ended.tilted)
        style = {"reward": "-", "loss": "--"}[place]
        right.plot(np.arange(len(distance)) + 1, distance, style, label=f"{name} in the {place}")
    right.set(xscale="log", yscale="log", xlabel="gradient steps", ylabel="total variation distance to pi*")
    right.set_title("Where each KL term leads on a bandit")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    algorithm = rlhf(options.iterations)
    keys = jax.vmap(jax.random.key)(jnp.arange(options.seeds))
    found = evaluated(algorithm.model.network, train(algorithm, options.betas, keys), options.betas)
    ended = bandit(options.steps)
    config = to_config(algorithm)
    config["hyperparameters"]["beta"] = options.betas
    config["parts"]["model"] = {"network": TEXT_NETWORKS.describe(algorithm.model.network), "chain": CHAIN}
    last = {" in the ".join(placement): policies[-1] for placement, policies in ended.policies.items()}
    report = {
        "config": config,
        "seeds": list(range(options.seeds)),
        "reference_reward": REF_REWARD,
        "optimum": dict(zip(("reward", "kl"), zip(*map(optimum, options.betas), strict=True), strict=True)),
        "rlhf": found._asdict(),
        "bandit": ended._asdict() | {"beta": BETA, "policies": last, "unregularised": ended.unregularised[-1]},
    }
    write_report(options.out, f"{frontier_table(options, found)}\n{bandit_table(options, ended)}", algorithm, report)
    plot(options, found, ended, options.out / "exact_frontier.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
