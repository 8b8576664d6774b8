"""Bias and variance of the policy gradient's expressions, for the same policy and from the same batches of episodes.

    python experiments/gradient_variance.py

On a tabular MDP the gradient is known exactly; for a partly trained MLP on CartPole-v1 a very large sample takes its
place. GAE and n-step returns bootstrap from an imperfect value: half of the exact one plus noise in the tabular MDP, a
fitted network on CartPole. What theory predicts about the order is checked with the bootstrap over batches. Writes
gradient_variance.json (config and every figure), gradient_variance.md (tables) and gradient_variance.png.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, pyplot, write_report
from tabular import (
    Moments,
    Setting,
    action_values,
    cartpole,
    credited,
    expected_return,
    gradients,
    interval,
    moments,
    random_logits,
    random_mdp,
    resampled,
    sample_gradients,
    tabular,
    values,
    visits,
)

from pgjax.environments.probes import TabularMDP
from pgjax.learning import returns
from pgjax.learning.rollout import Transition
from pgjax.running.config import to_config

EXPRESSIONS: dict[str, tuple[Any, Any]] = {
    "total return": ("total_return", "none"),
    "reward-to-go": ("reward_to_go", "none"),
    "mean baseline": ("reward_to_go", "mean"),
    "value baseline": ("reward_to_go", "value"),
    "optimal baseline": ("reward_to_go", "optimal"),
}
"""Names and REINFORCE's switches. Its mean and optimal baselines are those of each time step."""
NOTES = """\
The mean and the optimal baseline are functions of the time step alone, estimated without the episode itself; "exact"
ones need no estimate, and the difference is what that costs with so few episodes. The value baseline is the exact V(s)
in the tabular MDP and the fitted network on CartPole-v1, which does not know the time; GAE and n-step returns use that
network, and in the tabular MDP half of V(s) plus noise, as a baseline only at lambda 1 and where n is a whole episode.
Least variance among functions of the time step says nothing about functions of the state: against V(s), theory favours
only the optimum per state.
"""
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
MORE = 16
"""Batches whose mean is looked at beside a single one: bias counts for more the more data there is."""
ORDERINGS = [
    ("total return", "reward-to-go"),
    ("reward-to-go", "mean baseline"),
    ("mean baseline", "value baseline"),
    ("value baseline", "optimal baseline"),
    ("mean baseline", "optimal baseline"),
    ("mean baseline", "mean, exact"),
    ("optimal baseline", "optimal, exact"),
    ("mean, exact", "optimal, exact"),
    ("value baseline", "optimal per state, exact"),
    ("optimal, exact", "optimal per state, exact"),
]
"""Predicted: the variance of the first is larger."""
UNIT = "in units of |grad J|²"
STYLES = (
    {"color": "tab:orange"},
    {"color": "tab:blue", "linewidth": 3},
    {"color": "black", "linestyle": "--"},
    {"color": "tab:gray"},
)


@dataclasses.dataclass(frozen=True)
class Options:
    episodes: Annotated[int, tyro.conf.arg(help="episodes per batch")] = 16
    tabular_batches: Annotated[int, tyro.conf.arg(help="batches in the tabular MDP")] = 16_000
    batches: Annotated[int, tyro.conf.arg(help="batches on CartPole-v1")] = 1000
    limit: Annotated[int, tyro.conf.arg(help="most steps of an episode of CartPole-v1")] = 100
    iterations: Annotated[int, tyro.conf.arg(help="iterations of PPO that train the policy on CartPole-v1")] = 3
    fit_iterations: Annotated[int, tyro.conf.arg(help="iterations of the regression of its value")] = 60
    reference_batches: Annotated[int, tyro.conf.arg(help="batches of the very large sample")] = 200
    reference_episodes: Annotated[int, tyro.conf.arg(help="episodes in each of them")] = 256
    resamples: Annotated[int, tyro.conf.arg(help="bootstrap samples of the batches")] = 500
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def credit_of(setting: Setting, credit: Any, baseline: Any, batch: Transition) -> jax.Array:
    """REINFORCE's weights of the scores."""
    return credited(setting, batch, credit=credit, baseline=baseline)[0]


def n_values(horizon: int) -> list[int]:
    """1, 2, 4, ... up to the first from which n-step returns are whole rewards-to-go."""
    return [2**i for i in range((horizon - 1).bit_length() + 1)]


def bootstrapped(setting: Setting, batch: Transition) -> list[jax.Array]:
    """GAE over lambda, then n-step returns over n. The time limit ends an episode like any other end, as it does for
    REINFORCE: an estimate of what would follow is no part of J."""
    done = batch.terminated | batch.truncated
    ends = done, jnp.zeros_like(done)
    gamma = setting.algorithm.gamma
    found = [returns.gae(batch.reward, batch.value, batch.next_value, *ends, gamma, x) for x in LAMBDAS]
    found += [
        returns.n_step(batch.reward, batch.next_value, *ends, gamma, n) - batch.value
        for n in n_values(setting.algorithm.num_steps)
    ]
    _, counted = credited(setting, batch)
    return [counted * advantage for advantage in found]


def bootstrapped_names(setting: Setting) -> list[str]:
    return [f"GAE {x:g}" for x in LAMBDAS] + [f"{n}-step" for n in n_values(setting.algorithm.num_steps)]


def all_weights(setting: Setting, tables: dict[str, jax.Array], batch: Transition) -> jax.Array:
    """Of EXPRESSIONS, those that `tables` [H, S] name with these for a value; of the other tables as baselines; and of
    what bootstraps."""
    exact = {name: batch._replace(value=batch.obs @ table.ravel()) for name, table in tables.items()}
    found = [credit_of(setting, *switches, exact.get(name, batch)) for name, switches in EXPRESSIONS.items()]
    found += [credit_of(setting, "reward_to_go", "value", exact[name]) for name in exact if name not in EXPRESSIONS]
    return jnp.stack(found + bootstrapped(setting, batch))


class Measured(NamedTuple):
    """Of one setting; each figure `[1 + resamples]`, in units of |grad J|^2, by the name of the expression."""

    setting: Setting
    squared_norm: float
    """|grad J|^2."""
    squared_bias: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]

    def mean_squared_error(self, batches: int = 1) -> dict[str, np.ndarray]:
        """Of the mean of so many."""
        return {name: self.squared_bias[name] + self.variance[name] / batches for name in self.variance}

    def figures(self) -> dict[str, dict[str, np.ndarray]]:
        return {
            "squared bias": self.squared_bias,
            "variance": self.variance,
            "mean squared error": self.mean_squared_error(),
            f"mean squared error of {MORE} batches": self.mean_squared_error(MORE),
        }


def measured(setting: Setting, names: list[str], rows: np.ndarray, gradient: Moments, resamples: int) -> Measured:
    """`gradient` is grad J: its exact value, or a very large sample as the bootstrap draws it."""
    drawn, norm = resampled(rows.shape[1], resamples), float(gradient.squared_norm[0])
    squared_bias, spread = {}, {}
    for name, estimates in zip(names, rows, strict=True):
        found = moments(drawn, estimates)
        between = np.sum(found.mean * gradient.mean, axis=1)
        squared_bias[name] = (found.squared_norm - 2 * between + gradient.squared_norm) / norm
        spread[name] = found.variance / norm
    return Measured(setting, norm, squared_bias, spread)


def exact_baselines(mdp: TabularMDP, logits: jax.Array) -> dict[str, jax.Array]:
    """Functions of time and state, `[H, S]`.

    The scores of different states of a table are orthogonal, so that E[|grad log pi|^2 Q | s] / E[|grad log pi|^2 | s]
    is the best of all functions of time and state, and the same given the time alone the best of all functions of time.
    """
    policy, Q = jax.nn.softmax(logits), action_values(mdp, logits)
    squared_score = jnp.sum((jnp.eye(policy.shape[-1]) - policy[..., None, :]) ** 2, axis=-1)
    reached = visits(mdp, logits)[..., None]

    def mean(weight: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        found = jnp.sum(weight * Q, axes, keepdims=True) / jnp.sum(weight, axes, keepdims=True)
        return jnp.broadcast_to(found, Q.shape)[..., 0]

    return {
        "value baseline": values(mdp, logits),
        "mean, exact": mean(reached * policy, (1, 2)),
        "optimal, exact": mean(reached * policy * squared_score, (1, 2)),
        "optimal per state, exact": mean(policy * squared_score, (2,)),
    }


def in_tabular(options: Options) -> Measured:
    mdp, logits = random_mdp(0), random_logits(1)
    baselines = exact_baselines(mdp, logits)
    noise = np.random.default_rng(2).normal(size=logits.shape[:2])
    setting = tabular(options.episodes, mdp, logits, 0.5 * baselines["value baseline"] + 0.3 * noise.astype(np.float32))
    rows = sample_gradients(
        setting, lambda batch: all_weights(setting, baselines, batch), options.tabular_batches, seed=3, chunk=64
    )
    gradient = np.asarray(jax.grad(lambda logits: expected_return(mdp, logits))(logits)).ravel()
    names = list(dict.fromkeys([*EXPRESSIONS, *baselines, *bootstrapped_names(setting)]))
    squared_norm = np.sum(gradient**2, keepdims=True)
    exact = Moments(gradient[None], squared_norm, squared_norm)
    return measured(setting, names, rows, exact, options.resamples)


def on_cartpole(options: Options) -> Measured:
    setting = cartpole(options.episodes, options.limit, options.iterations, options.fit_iterations)
    rows = sample_gradients(setting, lambda batch: all_weights(setting, {}, batch), options.batches, seed=4)
    wide = setting._replace(
        algorithm=dataclasses.replace(
            setting.algorithm,
            num_envs=options.reference_episodes,
            total_steps=options.reference_episodes * options.limit,
        )
    )
    reference = sample_gradients(
        wide,
        lambda batch: credit_of(wide, "reward_to_go", "value", batch)[None],
        options.reference_batches,
        seed=5,
        chunk=1,
    )[0]
    names = [*EXPRESSIONS, *bootstrapped_names(setting)]
    gradient = moments(resampled(len(reference), options.resamples, seed=1), reference)
    return measured(setting, names, rows, gradient, options.resamples)


class Check(NamedTuple):
    """What theory predicts, and what was found."""

    setting: str
    claim: str
    found: str
    verdict: str


def verdict(difference: np.ndarray) -> str:
    """Of the prediction that it is positive."""
    _, low, high = interval(difference)
    return "holds" if low > 0 else "does not hold" if high < 0 else "not resolved"


def ordering(result: Measured, larger: str, smaller: str) -> Check:
    ratio = result.variance[larger] / result.variance[smaller]
    claim = f"variance: {larger} > {smaller}"
    return Check(result.setting.name, claim, f"ratio {interval(ratio)}", verdict(ratio - 1.0))


def sequence(result: Measured, claim: str, differences: list[np.ndarray]) -> Check:
    """Predicted: every one of these is positive."""
    verdicts = [verdict(difference) for difference in differences]
    counts = {kind: verdicts.count(kind) for kind in ("holds", "does not hold", "not resolved")}
    found = ", ".join(f"{kind} in {count} of {len(verdicts)}" for kind, count in counts.items() if count)
    if counts["holds"] and counts["not resolved"] and not counts["does not hold"]:
        return Check(result.setting.name, claim, found, "holds where resolved")
    overall = next(kind for kind in ("does not hold", "not resolved", "holds") if counts[kind])
    return Check(result.setting.name, claim, found, overall)


def no_bias(result: Measured) -> Check:
    """Of what bootstraps from no value: the squared bias is zero within its interval."""
    names = [name for name in result.variance if name not in bootstrapped_names(result.setting)]
    names += ["GAE 1", bootstrapped_names(result.setting)[-1]]
    biased = [name for name in names if interval(result.squared_bias[name]).low > 0]
    found = f"0 in the interval of {len(names) - len(biased)} of {len(names)}"
    return Check(result.setting.name, "no bias without bootstrapping", found, "does not hold" if biased else "holds")


def checks(result: Measured) -> list[Check]:
    found = [ordering(result, *pair) for pair in ORDERINGS if set(pair) <= result.variance.keys()]
    found.append(no_bias(result))
    families = {"GAE's lambda": "GAE", "n": "step"}
    for parameter, word in families.items():
        names = [name for name in bootstrapped_names(result.setting) if word in name]
        steps = list(itertools.pairwise(names))
        more = [result.variance[b] - result.variance[a] for a, b in steps]
        less = [result.squared_bias[a] - result.squared_bias[b] for a, b in steps]
        found.append(sequence(result, f"variance grows with {parameter}", more))
        found.append(sequence(result, f"squared bias falls with {parameter}", less))
    return found


class TwoStates(NamedTuple):
    """Two states whose two actions return 12 and 7, and 2 and 5, under a uniform policy. Each `[state, action]`."""

    ret: np.ndarray
    value: np.ndarray
    weights: np.ndarray
    """`[without and with baseline, state, action]`"""
    variance: np.ndarray
    """`[without and with baseline, state]`: exact, of the gradient of one sample."""


def two_states() -> TwoStates:
    """By the library's functions: all four pairs as one batch, then each as a batch of its own."""
    reward = jnp.array([[12.0, 7.0], [2.0, 5.0]])
    shape, one_step = reward.shape, (1, reward.size)
    state, action = (jnp.asarray(axis, jnp.int32).reshape(one_step) for axis in np.indices(shape))
    ends = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (2, 2, 3))
    mdp, uniform = TabularMDP(ends, reward, horizon=1), jnp.zeros((1, 2, 2))
    setting = tabular(1, mdp, uniform, values(mdp, uniform))
    obs, yes = jax.nn.one_hot(state, 2), jnp.ones(one_step, bool)
    _, output = setting.algorithm.network.unroll(setting.state.params, (), obs, yes)
    batch = Transition(
        obs=obs,
        action=action,
        log_prob=output.distribution.log_prob(action),
        value=output.value,
        reward=reward.reshape(one_step),
        terminated=yes,
        truncated=~yes,
        next_value=jnp.zeros(one_step),
        reset=yes,
    )
    weights = jnp.stack([credit_of(setting, "reward_to_go", baseline, batch) for baseline in ("none", "value")])
    each = [gradients(setting, only(batch, i), weights[..., i, None]) for i in range(reward.size)]
    rows = np.asarray(jnp.stack(each, axis=1), np.float64).reshape(2, *shape, -1)
    value, weights = output.value.reshape(shape), weights.reshape(2, *shape)
    return TwoStates(*map(np.asarray, (reward, value, weights, rows.var(axis=2).sum(-1))))


def only(batch: Transition, column: int) -> Transition:
    return jax.tree.map(lambda x: x[:, column, None], batch)


def results_table(result: Measured) -> str:
    figures = result.figures()
    rows = [[name, *(str(interval(found[name])) for found in figures.values())] for name in result.variance]
    return markdown(["expression", *figures], rows)


def checks_table(found: list[Check]) -> str:
    return markdown(["policy", "predicted", "found", "verdict"], [list(check) for check in found], text_columns=4)


def two_states_text(found: TwoStates) -> str:
    rows = [
        [
            f"{state + 1}",
            " / ".join(f"{x:g}" for x in found.ret[state]),
            f"{found.value[state, 0]:g}",
            *(" / ".join(f"{x:+g}" for x in weights[state]) for weights in found.weights),
            *(f"{x:g}" for x in found.variance[:, state]),
        ]
        for state in range(len(found.ret))
    ]
    header = ["state", "returns of its actions", "V(s)", "weights without baseline", "weights with V(s)"]
    raw, centred = (" and ".join(f"{x:+g}" for x in weights[:, 1]) for weights in found.weights)
    return (
        "Two states, in each two actions that a uniform policy chooses between, by the library's functions; the "
        "variance of a sample's\ngradient is exact:\n\n"
        + markdown([*header, "variance without baseline", "variance with V(s)"], rows)
        + f"\nWhere the second action was taken in both, the weights without baseline are {raw}: both become more "
        f"likely. With V(s) they are\n{centred}: only the better one does.\n"
    )


def draw_bars(panel: Any, result: Measured) -> None:
    names = [name for name in result.variance if name not in bootstrapped_names(result.setting)]
    value, low, high = columns(result.variance, names)
    panel.barh(range(len(names)), value, color="tab:blue", xerr=[value - low, high - value], capsize=3)
    for row in range(len(names)):
        panel.text(1.05 * high[row], row, f"{value[row]:.3g}", va="center", fontsize=8)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    left = 10 ** np.floor(np.log10(value.min()))
    panel.set(xscale="log", xlim=(left, 2 * high.max()), xlabel=UNIT, title=f"{result.setting.name}: variance")
    panel.xaxis.set_minor_formatter("")


def draw_curves(panel: Any, result: Measured, names: list[str], ticks: list[str], label: str) -> None:
    """Of a figure whose interval reaches zero, which has no place on a log scale, the upper end alone."""
    marks = []
    for row, (figure, found) in enumerate(result.figures().items()):
        value, low, high = columns(found, names)
        at, style = np.arange(len(names)) + 0.06 * (row - 1.5), STYLES[row]
        shown, ends = np.where(low > 0, value, np.nan), np.where(low > 0, np.nan, high)
        error = [value - low, high - value]
        panel.errorbar(at, shown, error, label=figure, marker="o", markersize=4, capsize=2, **style)
        panel.plot(at, ends, marker="v", linestyle="", color=style["color"])
        marks += [shown, ends]
    panel.set_xticks(range(len(names)), ticks)
    panel.set(yscale="log", ylim=(np.nanmin(marks) / 3, None), xlabel=label, ylabel=UNIT, title=result.setting.name)


def columns(found: dict[str, np.ndarray], names: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Figures, and the lower and upper ends of their intervals."""
    value, low, high = np.array([interval(found[name]) for name in names]).T
    return value, low, high


def plot(results: list[Measured], path: Path) -> None:
    figure, panels = pyplot().subplots(len(results), 3, figsize=(15, 4 * len(results)), layout="constrained")
    for (bars, over_lambda, over_n), result in zip(panels, results, strict=True):
        draw_bars(bars, result)
        lengths = n_values(result.setting.algorithm.num_steps)
        draw_curves(over_lambda, result, [f"GAE {x:g}" for x in LAMBDAS], [f"{x:g}" for x in LAMBDAS], "lambda of GAE")
        draw_curves(over_n, result, [f"{n}-step" for n in lengths], list(map(str, lengths)), "n of n-step returns")
    handles, labels = panels[0, 1].get_legend_handles_labels()
    labels[0] += " (triangle: upper end of an interval that reaches 0)"
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=110)


def report_of(result: Measured) -> dict[str, Any]:
    figures = result.figures()
    return {
        "config": to_config(result.setting.algorithm),
        "about": result.setting.about,
        "squared_norm_of_gradient": result.squared_norm,
        "expressions": {
            name: {figure: interval(found[name]) for figure, found in figures.items()} for name in result.variance
        },
    }


def text_of(results: list[Measured], found: list[Check], options: Options) -> str:
    measurements = [
        f"{result.setting.name}, |grad J|² = {result.squared_norm:.4g}; {result.setting.about}:\n\n"
        + results_table(result)
        for result in results
    ]
    return "\n".join(
        [
            f"Batches of {options.episodes} episodes, gamma = 1, figures in units of |grad J|² with 95 % bootstrap "
            "intervals over batches. Squared bias is\ndebiased by the variance of the mean, so it may come out "
            "negative.\n",
            *measurements,
            NOTES,
            "What theory predicts, and what was found:\n",
            checks_table(found),
            two_states_text(two_states()),
        ]
    )


def main(options: Options) -> None:
    results = [in_tabular(options), on_cartpole(options)]
    found = [check for result in results for check in checks(result)]
    report = {
        "options": {key: value for key, value in dataclasses.asdict(options).items() if key != "out"},
        "settings": {result.setting.name: report_of(result) for result in results},
        "checks": [check._asdict() for check in found],
        "two_states": two_states()._asdict(),
    }
    write_report(options.out, text_of(results, found, options), results[-1].setting.algorithm, report)
    plot(results, options.out / "gradient_variance.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
