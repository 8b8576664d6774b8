"""Does our CartPole mean what we say? Trains here, exports the policy to NumPy, plays Gymnasium's own CartPole-v1.

    python experiments/gymnasium_transfer.py

Ends with one line of figures. Needs the extra `gymnasium`.
"""

import dataclasses
from typing import Annotated, Any

import gymnasium
import jax
import numpy as np
import tyro

import pgjax


@dataclasses.dataclass(frozen=True)
class Options:
    episodes: Annotated[int, tyro.conf.arg(help="episodes in Gymnasium")] = 100
    seeds: Annotated[int, tyro.conf.arg(help="training runs, of which the best by evaluation is taken over")] = 8


def exported_policy(params: Any) -> Any:
    """The greedy policy of an MLP with tanh layers as a NumPy function of one observation; nothing of JAX is left."""
    params = jax.tree.map(np.asarray, params)
    layers = [params["actor"]["params"][f"Dense_{i}"] for i in range(len(params["actor"]["params"]))]
    head = params["policy"]

    def act(obs: np.ndarray) -> int:
        x = obs
        for layer in layers:
            x = np.tanh(x @ layer["kernel"] + layer["bias"])
        return int(np.argmax(x @ head["kernel"] + head["bias"]))

    return act


def play(act: Any, episodes: int) -> np.ndarray:
    """Returns of complete episodes in Gymnasium's CartPole-v1, seeded 0, 1, 2, ..."""
    env, returns = gymnasium.make("CartPole-v1"), []
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        total, done = 0.0, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return np.array(returns)


def main(options: Options) -> None:
    ppo = pgjax.tuned("ppo", "CartPole-v1")
    result = pgjax.sweep(ppo, options.seeds, episodes=options.episodes, progress=False)
    state = result.member(int(np.argmax(result.scores["return_mean"]))).state
    here = pgjax.evaluate(ppo, state, jax.random.key(options.seeds), options.episodes)
    there = play(exported_policy(state.params), options.episodes)
    print(
        f"episodes={options.episodes} return_mean_pgjax={float(here.mean):.2f} "
        f"return_mean_gymnasium={there.mean():.2f} return_min_gymnasium={there.min():.2f}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
