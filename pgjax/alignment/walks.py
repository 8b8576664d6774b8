"""Walks on a graph, a built-in language: from a node, the prompt, to node "a" along the edges, in few steps.

The graph is that of trlx's example: 21 nodes, an edge between two with probability 0.1, drawn with seed 1002. Read
`completions` (walks at random), then `optimality` (a reward). Node i is token i and the i-th letter; token 21 ends a
text, token 22 is padding.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

NODES = 21
GOAL = 0
LONGEST = 10
"""Nodes of a walk, its first included."""
WORDS = tuple(chr(ord("a") + i) for i in range(NODES))
EOS, PAD = NODES, NODES + 1


def _graph() -> np.ndarray:
    """Edges from node to node: the first draw in which every node has one that leaves it. None leaves the goal."""
    rng = np.random.RandomState(1002)
    edges = np.zeros((NODES, NODES), bool)
    while not edges.any(axis=1).all():
        edges = rng.rand(NODES, NODES) > 0.9
        np.fill_diagonal(edges, False)
    edges[GOAL] = False
    return edges


def _shortest(edges: np.ndarray) -> np.ndarray:
    """Nodes of the shortest walk from each node to the goal, both included; `LONGEST` where there is none."""
    length = np.where(np.arange(NODES) == GOAL, 1, LONGEST)
    for nodes in range(2, LONGEST):
        reached = edges @ (length == nodes - 1)
        length = np.where(reached & (length == LONGEST), nodes, length)
    return length


EDGES = _graph()
SHORTEST = _shortest(EDGES)


def optimality(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B"]:
    """(10 - n) / (10 - n*) of a walk of n nodes to the goal, where n* is the least; 0 if it leaves the edges before the
    goal, does not reach it, or has more than 10. What follows the goal is not looked at."""
    edges = jnp.pad(jnp.asarray(EDGES), ((0, 2), (0, 2)))
    start = prompt[:, -1]
    along = edges[jnp.concatenate([start[:, None], tokens[:, :-1]], axis=1), tokens] & mask
    arrived = (tokens == GOAL) & jnp.cumprod(along, axis=1).astype(bool)
    nodes = jnp.where(jnp.any(arrived, axis=1), jnp.argmax(arrived, axis=1) + 2, LONGEST)
    least = jnp.asarray(SHORTEST)[jnp.clip(start, 0, NODES - 1)]
    return jnp.maximum(LONGEST - nodes, 0) / (LONGEST - least)


def completions(num: int, seed: int) -> list[dict[str, str]]:
    """Records of a start and a walk at random, to the goal or of `LONGEST` nodes: `prompt`, `completion`."""
    rng = np.random.default_rng(seed)
    return [_record(walk) for walk in (_walk(rng, rng.integers(1, NODES)) for _ in range(num))]


def preferences(num: int, seed: int) -> list[dict[str, str]]:
    """Records of two walks from one start, the shorter one to the goal chosen: `prompt`, `chosen`, `rejected`."""
    rng = np.random.default_rng(seed)
    records: list[dict[str, str]] = []
    while len(records) < num:
        start = rng.integers(1, NODES)
        walks = sorted((_walk(rng, start) for _ in range(2)), key=_nodes)
        if _nodes(walks[0]) < _nodes(walks[1]):
            chosen, rejected = (_record(walk)["completion"] for walk in walks)
            records.append({"prompt": WORDS[start], "chosen": chosen, "rejected": rejected})
    return records


def labelled(num: int, seed: int) -> list[dict[str, str | bool]]:
    """Records of a walk at random and whether it reaches the goal: `prompt`, `completion`, `label`."""
    return [{**record, "label": record["completion"].endswith(WORDS[GOAL])} for record in completions(num, seed)]


def _walk(rng: np.random.Generator, start: int | np.integer) -> list[int]:
    walk = [int(start)]
    while len(walk) < LONGEST and walk[-1] != GOAL:
        walk.append(int(rng.choice(np.flatnonzero(EDGES[walk[-1]]))))
    return walk


def _nodes(walk: list[int]) -> int:
    """How many a walk has; more than any other if it does not reach the goal."""
    return len(walk) if walk[-1] == GOAL else LONGEST + 1


def _record(walk: list[int]) -> dict[str, str]:
    return {"prompt": WORDS[walk[0]], "completion": " ".join(WORDS[node] for node in walk[1:])}
