"""Episodes as GIFs or MP4s. Needs the extra `render`, for MP4 `video` as well."""

import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from pgjax.core.errors import InputError
from pgjax.environments.gymnax import Film, filmed
from pgjax.learning.acting import greedy
from pgjax.reporting.plotting import matplotlib
from pgjax.running.session import check_count


def render(
    result: Any, out: str | Path, episodes: int = 1, seed: int = 0, max_steps: int = 500, progress: bool = True
) -> list[tuple[int, float]]:
    """Play greedy episodes of a `Result` and write them one after another as `out`, a `.gif` or `.mp4`.

    Returns the length of each, at most `max_steps`, and its return.

    Raises:
        InputError: another ending, several members (render `result.member(i)`), no environment, one that gymnax does
            not draw (with those it does), or a package that is missing.
        OSError: `out` cannot be written.
    """
    out = Path(out)
    if out.suffix not in (".gif", ".mp4"):
        raise InputError(f"render: out = {str(out)!r} is not accepted: expected an ending of .gif or .mp4")
    for name, value in {"episodes": episodes, "max_steps": max_steps}.items():
        check_count(f"render: {name}", value)
    if not hasattr(result.algorithm, "env"):
        raise InputError(f"{type(result.algorithm).__name__} has no policy in an environment: there is nothing to draw")
    if result.state.iteration.ndim:
        raise InputError(f"render: there are {len(result.state.iteration)} members: expected one, by member(i)")
    if "matplotlib.pyplot" not in sys.modules:
        matplotlib().use("Agg")  # gymnax draws with pyplot, which must not look for a screen
    keys = jax.random.split(jax.random.key(seed), episodes)
    played = [_played(result.algorithm, result.state, key, max_steps) for key in keys]
    states = [state for found, _ in played for state in found]
    returns = np.concatenate([np.cumsum(rewards) for _, rewards in played])
    film = filmed(result.algorithm.env, states, returns)
    if progress and sys.stderr.isatty():
        pictures = track(film.pictures, f"drawing {out.name}", len(states), console=Console(stderr=True))
        film = film._replace(pictures=iter(pictures))
    (_write_mp4 if out.suffix == ".mp4" else _write_gif)(film, out)
    return [(len(rewards), float(np.sum(rewards))) for _, rewards in played]


def _write_gif(film: Film, out: Path) -> None:
    from PIL import Image

    images = map(Image.fromarray, film.pictures)
    next(images).save(out, save_all=True, append_images=images, duration=film.milliseconds, loop=0)


def _write_mp4(film: Film, out: Path) -> None:
    try:
        ffmpeg = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except ImportError as error:
        raise InputError(f"an MP4 needs a package: pip install 'pgjax[video]' ({error})") from error
    first = next(film.pictures)
    height, width, _ = first.shape
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {1000 / film.milliseconds} -i -"
    even = "-pix_fmt yuv420p -vf pad=ceil(iw/2)*2:ceil(ih/2)*2"  # what players want
    command = [ffmpeg, "-y", "-loglevel", "error", *raw.split(), *even.split(), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin
        for picture in itertools.chain([first], film.pictures):
            process.stdin.write(picture.tobytes())
    if process.returncode:
        raise OSError(f"{out} could not be written: ffmpeg ended with status {process.returncode}")


def _played(algorithm: Any, state: Any, key: Any, max_steps: int) -> tuple[list[Any], list[float]]:
    """The states of one greedy episode, and its rewards."""
    env, actor = algorithm.env, algorithm.actor(state)
    key, reset_key = jax.random.split(key)
    env_state, obs = env.reset(reset_key)
    memory, first = actor.initial_memory(1), True
    states: list[Any] = []
    rewards: list[float] = []
    step = jax.jit(env.step)
    act = jax.jit(lambda memory, obs, reset: greedy(actor, memory, obs, reset))
    done = False
    while not done and len(states) < max_steps:
        states.append(env_state)
        memory, action = act(memory, obs[None], np.array([first]))
        successor = step(jax.random.fold_in(key, len(states)), env_state, action[0])
        rewards.append(float(successor.reward))
        done = bool(successor.terminated | successor.truncated)
        env_state, obs, first = successor.state, successor.obs, False
    return states, rewards
