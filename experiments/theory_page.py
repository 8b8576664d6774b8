"""The numbers behind the page on the theory of policy gradients, whose figures a reader moves.

    python experiments/theory_page.py

Everything is computed by the library on problems with known answers: steps of three rules on a bandit, the returns of
some episodes of the tabular MDP of `tabular.py` and their exact moments, the bias (exact) and the variance (from many
batches) of GAE over gamma and lambda, and the best policies of `exact_frontier.py`. What the experiments have measured
on CartPole-v1 and with RLHF is read from their results. Writes data.js, which the page loads also without a server.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import dumps
from exact_frontier import COMPLETIONS, REF_LOG_PROB, REWARD, TOKENIZER
from scipy.special import logsumexp
from tabular import (
    Setting,
    credited,
    expected_return,
    fresh_batch,
    moments,
    random_logits,
    random_mdp,
    resampled,
    sample_gradients,
    tabular,
    visits,
)

from pgjax.environments.probes import TabularMDP
from pgjax.learning import losses, returns
from pgjax.learning.natural_gradient import conjugate_gradient, fisher_vector_product
from pgjax.learning.rollout import Transition
from pgjax.networks.distributions import Categorical

ASSIGNMENT = "window.pgjaxTheory = "
"""What precedes the JSON in data.js."""
PAID = jnp.array([1.0, 0.5, 0.0])
"""What the three actions of the bandit pay."""
STARTS = {
    "almost even": (0.3, 0.3, 0.4),
    "set on the worst action": (0.04, 0.16, 0.8),
    "set on the middle action": (0.1, 0.8, 0.1),
}
STEP_SIZES = tuple(round(float(x), 3) for x in np.geomspace(0.1, 10.0, 21))
STEPS, CLIP_EPS = 10, 0.2
CG_DAMPING = 1e-6
"""Without any, float32 loses the direction where an action has hardly any probability left."""
GAMMAS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
LAMBDAS = tuple(i / 10 for i in range(11))
VALUES = ("half of V plus noise", "exact V")
EPISODES = 16
"""In each batch of the MDP."""


@dataclasses.dataclass(frozen=True)
class Options:
    batches: Annotated[int, tyro.conf.arg(help="batches that the variance of GAE is measured with")] = 4000
    results: Annotated[Path, tyro.conf.arg(help="directory of the experiments' results")] = Path("experiments/results")
    out: Annotated[Path, tyro.conf.arg(help="directory of the page")] = Path("pgjax/docs/pages/theory")


def update_path(rule: str, start: jax.Array, step_size: jax.Array) -> jax.Array:
    """The policies after 0, 1, ..., STEPS steps on one batch, `[STEPS + 1, actions]`.

    Each action is in the batch as often as its probability says, so that the gradient is the exact one.
    """
    old, logits = start, jnp.log(start)
    advantage = PAID - old @ PAID

    def loss(logits: jax.Array) -> jax.Array:
        ratio = jnp.exp(jax.nn.log_softmax(logits) - jnp.log(old))
        clipped = losses.ppo_clip(ratio, advantage, CLIP_EPS)
        return old @ (clipped if rule == "clipped" else losses.surrogate(ratio, advantage))

    def step(logits: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        direction = -jax.grad(loss)(logits)
        if rule == "natural gradient":
            product = fisher_vector_product(Categorical, logits, damping=CG_DAMPING)
            direction = conjugate_gradient(product, direction, iterations=10)
        logits = logits + step_size * direction
        return logits, logits

    path = jax.lax.scan(step, logits, length=STEPS)[1]
    return jax.nn.softmax(jnp.concatenate([logits[None], path]))


def update() -> dict[str, Any]:
    starts, sizes = jnp.array(list(STARTS.values())), jnp.array(STEP_SIZES)
    paths = {}
    for rule in ("policy gradient", "natural gradient", "clipped"):
        over_sizes = jax.vmap(lambda start, size, rule=rule: update_path(rule, start, size), (None, 0))
        paths[rule] = jax.jit(jax.vmap(over_sizes, (0, None)))(starts, sizes)
    return {
        "paid": PAID,
        "starts": list(STARTS),
        "step_sizes": STEP_SIZES,
        "clip_eps": CLIP_EPS,
        "paths": {rule: np.asarray(path, float) for rule, path in paths.items()},
    }


def return_moments(mdp: TabularMDP, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E[G | s, a] and E[G^2 | s, a], each `[H, S, A]`, for the return G of the steps left."""
    transition = jnp.asarray(mdp.transition)[..., :-1]

    def step(later: tuple[jax.Array, jax.Array], logits: jax.Array) -> tuple[Any, Any]:
        Q = mdp.reward + transition @ later[0]
        square = mdp.reward**2 + 2.0 * mdp.reward * (transition @ later[0]) + transition @ later[1]
        policy = jax.nn.softmax(logits)
        return (jnp.sum(policy * Q, -1), jnp.sum(policy * square, -1)), (Q, square)

    nothing = jnp.zeros(logits.shape[1])
    return jax.lax.scan(step, (nothing, nothing), logits, reverse=True)[1]


def baseline(results: Path, episodes: int = 48) -> dict[str, Any]:
    """The first action of some episodes and their returns, and what is exact about both."""
    mdp, logits = random_mdp(0), random_logits(1)
    setting = tabular(episodes, mdp, logits, jnp.zeros(logits.shape[:2]))
    batch = jax.jit(lambda key: fresh_batch(setting, key))(jax.random.key(0))
    Q, square = jax.jit(return_moments)(mdp, logits)
    measured = json.loads((results / "score_function.json").read_text())["settings"]
    return {
        "policy": jax.nn.softmax(logits[0, 0]),
        "mean_return": Q[0, 0],
        "mean_squared_return": square[0, 0],
        "actions": batch.action[0],
        "returns": credited(setting, batch)[0][0],
        "measured": {
            name: {kind: found["ratios"][kind]["value"] for kind in ("no baseline", "constant", "V(s)", "-V(s)")}
            for name, found in measured.items()
        },
    }


def expected_gae(
    mdp: TabularMDP, logits: jax.Array, value: jax.Array, gamma: jax.Array, gae_lambda: jax.Array
) -> jax.Array:
    """E[A_t | s, a], `[H, S, A]`, for the advantage of `returns.gae` with a `value` `[H, S]`."""
    transition = jnp.asarray(mdp.transition)[..., :-1]

    def step(later: tuple[jax.Array, jax.Array], here: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        later_value, later_advantage = later
        logits, value = here
        delta = mdp.reward + gamma * (transition @ later_value) - value[:, None]
        advantage = delta + gamma * gae_lambda * (transition @ later_advantage)
        return (value, jnp.sum(jax.nn.softmax(logits) * advantage, axis=-1)), advantage

    nothing = jnp.zeros_like(value[0])
    return jax.lax.scan(step, (nothing, nothing), (logits, value), reverse=True)[1]


@jax.jit
def value_tables(mdp: TabularMDP, logits: jax.Array, gammas: jax.Array) -> jax.Array:
    """Of VALUES for each gamma, `[values, gammas, H, S]`."""
    nothing = jnp.zeros(logits.shape[:2])
    Q = jax.vmap(lambda gamma: expected_gae(mdp, logits, nothing, gamma, jnp.float32(1.0)))(gammas)
    exact = jnp.sum(jax.nn.softmax(logits) * Q, axis=-1)
    noise = np.random.default_rng(2).normal(size=nothing.shape).astype(np.float32)
    return jnp.stack([0.5 * exact + 0.3 * noise, exact])


def over_grid(function: Callable[..., jax.Array], tables: jax.Array, gammas: jax.Array, lambdas: jax.Array) -> Any:
    """function(table, gamma, lambda), `[values, gammas, lambdas, ...]`."""
    over_lambdas = jax.vmap(function, (None, None, 0))
    over_gammas = jax.vmap(over_lambdas, (0, 0, None))
    return jax.vmap(over_gammas, (0, None, None))(tables, gammas, lambdas)


@jax.jit
def exact_squared_bias(
    mdp: TabularMDP, logits: jax.Array, tables: jax.Array, gammas: jax.Array, lambdas: jax.Array
) -> jax.Array:
    """|E[estimate] - grad J|^2 / |grad J|^2, `[values, gammas, lambdas]`."""
    reached, gradient = visits(mdp, logits)[..., None], jax.grad(lambda x: expected_return(mdp, x))(logits)

    def squared_bias(table: jax.Array, gamma: jax.Array, gae_lambda: jax.Array) -> jax.Array:
        advantage = expected_gae(mdp, logits, table, gamma, gae_lambda)
        estimate = jax.grad(lambda x: jnp.sum(reached * jax.nn.softmax(x) * advantage))(logits)
        return jnp.sum((estimate - gradient) ** 2) / jnp.sum(gradient**2)

    return over_grid(squared_bias, tables, gammas, lambdas)


def gae_weights(
    setting: Setting, tables: jax.Array, gammas: jax.Array, lambdas: jax.Array, batch: Transition
) -> jax.Array:
    """Advantages by `returns.gae` of every value, gamma and lambda, `[combinations, T, B]`."""
    _, counted = credited(setting, batch)
    done, no = batch.terminated | batch.truncated, jnp.zeros_like(batch.terminated)

    def advantage(table: jax.Array, gamma: jax.Array, gae_lambda: jax.Array) -> jax.Array:
        value = batch.obs @ table.ravel()
        next_value = jnp.concatenate([value[1:], jnp.zeros_like(value[:1])])
        return counted * returns.gae(batch.reward, value, next_value, done, no, gamma, gae_lambda)

    return over_grid(advantage, tables, gammas, lambdas).reshape(-1, *counted.shape)


def gae(results: Path, batches: int) -> dict[str, Any]:
    """In units of |grad J|^2, for batches of EPISODES episodes."""
    mdp, logits = random_mdp(0), random_logits(1)
    grid = jnp.array(GAMMAS), jnp.array(LAMBDAS)
    tables = value_tables(mdp, logits, grid[0])
    setting = tabular(EPISODES, mdp, logits, jnp.zeros(logits.shape[:2]))
    rows = sample_gradients(
        setting, lambda batch: gae_weights(setting, tables, *grid, batch), batches, seed=3, chunk=16
    )
    norm = float(jnp.sum(jax.grad(lambda x: expected_return(mdp, x))(logits) ** 2))
    once = resampled(batches, 0)
    variance = np.array([moments(once, each).variance[0] for each in rows]) / norm
    measured = json.loads((results / "gradient_variance.json").read_text())["settings"]["CartPole-v1"]["expressions"]
    on_cartpole = {name.removeprefix("GAE "): found for name, found in measured.items() if name.startswith("GAE")}
    return {
        "batches": batches,
        "gammas": GAMMAS,
        "lambdas": LAMBDAS,
        "values": VALUES,
        "squared_bias": exact_squared_bias(mdp, logits, tables, *grid),
        "variance": variance.reshape(len(VALUES), len(GAMMAS), len(LAMBDAS)),
        "cartpole": {
            "lambdas": [float(x) for x in on_cartpole],
            "squared_bias": [found["squared bias"]["value"] for found in on_cartpole.values()],
            "variance": [found["variance"]["value"] for found in on_cartpole.values()],
        },
    }


def frontier(results: Path) -> dict[str, Any]:
    """The reference by what its completions earn: pi* is the same for all with one reward but for pi_ref."""
    levels = np.unique(REWARD)
    of_level = [np.where(level == REWARD, REF_LOG_PROB, -np.inf) for level in levels]
    likeliest = [int(np.argmax(log_prob)) for log_prob in of_level]
    trained = json.loads((results / "exact_frontier.json").read_text())
    return {
        "rewards": levels,
        "reference": np.exp([logsumexp(log_prob) for log_prob in of_level]),
        "completions": [" ".join(TOKENIZER.words[i] for i in COMPLETIONS[best]) for best in likeliest],
        "completion_probabilities": np.exp(REF_LOG_PROB[likeliest]),
        "rlhf": {
            "betas": trained["config"]["hyperparameters"]["beta"],
            "reward": trained["rlhf"]["reward"],
            "kl": trained["rlhf"]["kl"],
        },
    }


def rounded(value: Any) -> Any:
    """Six digits, which is more than a figure shows."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (np.ndarray, jax.Array)):
        return rounded(value.tolist())
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main(options: Options) -> None:
    data = {
        "update": update(),
        "baseline": baseline(options.results),
        "gae": gae(options.results, options.batches),
        "frontier": frontier(options.results),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "data.js").write_text(f"{ASSIGNMENT}{dumps(rounded(data))};\n")
    print(f"wrote {options.out / 'data.js'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
