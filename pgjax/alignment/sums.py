"""Running sums modulo 10, a built-in language of answers in steps: "3 + 9 + 4 =" is followed by "2 ; 6".

A step is a number, the sum so far; `;` is between steps. Read `completions` and `steps` (what models learn from), then
`is_right` and `right_steps` (rewards). The words of `WORDS` are tokens 0 to 12; token 13 ends a text, token 14 is
padding.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MODULUS = 10
MAX_NUMBERS = 5
"""Of a prompt in the records."""
WORDS = (*map(str, range(MODULUS)), "+", "=", ";")
PLUS, EQUALS, SEPARATOR, EOS, PAD = range(MODULUS, MODULUS + 5)


def is_right(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B"]:
    """1 where the completion ends with the sum of the prompt and EOS, whatever is before them."""
    last = jnp.sum(mask, axis=1) - 1
    found, end = (_at(tokens, last - back) for back in (1, 0))
    total = jnp.sum(jnp.where(prompt < MODULUS, prompt, 0), axis=1) % MODULUS
    return ((last > 0) & (end == EOS) & (found == total)).astype(jnp.float32)


def right_steps(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B T"]:
    """1 at the end of each right step: at a separator after the sum so far, at EOS after that of all numbers."""
    truth, steps = _running(prompt)
    ends = mask & ((tokens == SEPARATOR) | (tokens == EOS))
    step = jnp.cumsum(ends, axis=1) - ends
    found, before = (jnp.pad(tokens, ((0, 0), (back, 0)), constant_values=SEPARATOR)[:, :-back] for back in (1, 2))
    due = jnp.take_along_axis(truth, jnp.minimum(step, truth.shape[1] - 1), axis=1)
    whole = (tokens == SEPARATOR) | (step == steps[:, None] - 1)
    right = ends & (before == SEPARATOR) & (found == due) & (step < steps[:, None]) & whole
    return right.astype(jnp.float32)


def _running(prompt: Int[Array, "B P"]) -> tuple[Int[Array, "B P"], Int[Array, "B"]]:
    """The sums after the second number of a prompt, the third and so on, and how many they are."""
    number = prompt < MODULUS
    sums = jnp.cumsum(jnp.where(number, prompt, 0), axis=1) % MODULUS
    nth = jnp.cumsum(number, axis=1) - 2
    places = jax.nn.one_hot(jnp.where(number, nth, -1), prompt.shape[1], dtype=jnp.int32)
    return jnp.einsum("bp,bpn->bn", sums, places), jnp.maximum(nth[:, -1] + 1, 0)


def _at(tokens: Int[Array, "B T"], place: Int[Array, "B"]) -> Int[Array, "B"]:
    return jnp.take_along_axis(tokens, jnp.maximum(place, 0)[:, None], axis=1)[:, 0]


def completions(num: int, seed: int, wrong: float = 0.0) -> list[dict[str, str]]:
    """Records of a sum of two to `MAX_NUMBERS` numbers and its steps: `prompt`, `completion`; a share `wrong` of
    answers has a step that is wrong, and goes on from it."""
    return [
        {"prompt": prompt, "completion": " ; ".join(map(str, found))} for prompt, _, found in _rows(num, seed, wrong)
    ]


def steps(num: int, seed: int) -> list[dict[str, str | list]]:
    """Records of answers whose steps are judged: `prompt`, `completions`, `labels`.

    Half of the answers have a wrong step; of a quarter of all the last steps are missing, of another one the last step
    comes twice. A step is right if it is the sum so far, and if it is the last one where the answer ends.
    """
    rng = np.random.default_rng([seed, 1])
    records: list[dict[str, str | list]] = []
    for prompt, right, found in _rows(num, seed, 0.5):
        kind = rng.integers(4)
        written = found[: rng.integers(1, len(found))] if kind == 0 and len(found) > 1 else found
        written = [*written, written[-1]] if kind == 1 else written
        labels = [k < len(right) and step == right[k] for k, step in enumerate(written)]
        labels[-1] = labels[-1] and len(written) == len(right)
        records.append({"prompt": prompt, "completions": [str(step) for step in written], "labels": labels})
    return records


def _rows(num: int, seed: int, wrong: float) -> list[tuple[str, list[int], list[int]]]:
    """Prompts, their sums so far, and what an answer says of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        numbers = rng.integers(MODULUS, size=rng.integers(2, MAX_NUMBERS + 1))
        right = np.cumsum(numbers)[1:] % MODULUS
        place, error, chance = rng.integers(len(right)), rng.integers(1, MODULUS), rng.random()
        off = np.where(np.arange(len(right)) >= place, error, 0) if chance < wrong else 0
        rows.append((f"{' + '.join(map(str, numbers))} =", right.tolist(), ((right + off) % MODULUS).tolist()))
    return rows
