"""What the best policy returns where a state has two numbers: dynamic programming on a grid, then played.

    python experiments/optimal_returns.py

Backwards from the time limit, V_t(s) = max_a r(s, a) + V_{t+1}(s'), with the environment's own steps from every point
of a grid and values between points by bilinear interpolation. The policy that is greedy in V_t is then played from the
environment's own starts: its mean return is what is reported, and no policy can be much better. Writes
optimal_returns.json and optimal_returns.md.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import markdown, write_report

import pgjax


class Problem(NamedTuple):
    """Where the two numbers of a state lie, and which actions are tried."""

    fields: tuple[str, str]
    low: tuple[float, float]
    high: tuple[float, float]
    actions: Any
    horizon: int
    wraps: bool = False
    """Whether the first number is an angle."""


PROBLEMS = {
    "Pendulum-v1": Problem(
        ("theta", "theta_dot"), (-np.pi, -8.0), (np.pi, 8.0), np.linspace(-1, 1, 17)[:, None], 200, True
    ),
    "MountainCar-v0": Problem(("position", "velocity"), (-1.2, -0.07), (0.6, 0.07), np.arange(3), 200),
}


@dataclasses.dataclass(frozen=True)
class Options:
    points: Annotated[int, tyro.conf.arg(help="of the grid along each number")] = 301
    episodes: Annotated[int, tyro.conf.arg(help="played with the policy found")] = 4096
    out: Annotated[Path, tyro.conf.arg(help="directory of the results")] = Path("experiments/results")


def played(env: Any, problem: Problem, points: int, episodes: int) -> np.ndarray:
    """Returns of the policy that is greedy in the values found."""
    low, high = jnp.array(problem.low), jnp.array(problem.high)
    actions = jnp.asarray(problem.actions)
    start, _ = env.reset(jax.random.key(0))

    def step(state: Any, action: jax.Array) -> tuple[Any, jax.Array]:
        after = env.step(jax.random.key(0), state, action)
        return after, jnp.stack([getattr(after.state, name) for name in problem.fields])

    def interpolated(values: jax.Array, at: jax.Array) -> jax.Array:
        if problem.wraps:
            at = at.at[0].set((at[0] + jnp.pi) % (2 * jnp.pi) - jnp.pi)
        place = (at - low) / (high - low) * (points - 1)
        return jax.scipy.ndimage.map_coordinates(values, list(place), order=1, mode="nearest")

    def of_actions(values: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        after, at = jax.vmap(step, (None, 0))(state, actions)
        later = jax.vmap(interpolated, (None, 0))(values, at)
        return after.reward + jnp.where(after.terminated, 0.0, later), after

    grid = jnp.meshgrid(*(jnp.linspace(a, b, points) for a, b in zip(low, high, strict=True)), indexing="ij")
    states = jax.vmap(lambda x, y: start.replace(**dict(zip(problem.fields, (x, y), strict=True))))(
        *(x.ravel() for x in grid)
    )

    def before(values: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        best = jax.lax.map(lambda state: of_actions(values, state)[0].max(), states, batch_size=4096)
        return best.reshape(points, points), values

    _, values = jax.lax.scan(before, jnp.zeros((points, points)), length=problem.horizon)

    def episode(key: jax.Array) -> jax.Array:
        def act(carry: Any, values: jax.Array) -> tuple[Any, jax.Array]:
            state, running = carry
            quality, after = of_actions(values, state)
            chosen = jax.tree.map(lambda x: x[jnp.argmax(quality)], after)
            return (chosen.state, running & ~chosen.terminated), jnp.where(running, chosen.reward, 0.0)

        return jax.lax.scan(act, (env.reset(key)[0], True), values[::-1])[1].sum()

    return np.asarray(jax.lax.map(episode, jax.random.split(jax.random.key(1), episodes), batch_size=256))


def main(options: Options) -> None:
    found = {
        env_id: played(pgjax.make(env_id), problem, options.points, options.episodes)
        for env_id, problem in PROBLEMS.items()
    }
    rows = [
        [name, f"{x.mean():.2f} ± {x.std() / np.sqrt(x.size):.2f}", f"{x.min():.2f}", f"{x.max():.2f}"]
        for name, x in found.items()
    ]
    table = markdown(["environment", "mean return ± standard error", "lowest", "highest"], rows)
    text = f"{table}\n{options.episodes:,} episodes; values on {options.points} x {options.points} points.\n"
    means = {name: float(x.mean()) for name, x in found.items()}
    write_report(options.out, text, None, {"returns": means, "points": options.points, "episodes": options.episodes})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
