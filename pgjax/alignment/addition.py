"""Addition modulo 29, whose answers code can check: a built-in language of prompts "a + b =" and numbers.

Read `completions` (what models learn from), then `is_right` and `is_number` (rewards). The words of `WORDS` are tokens
0 to 30; token 31 ends a text, token 32 is padding.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MODULUS = 29
WORDS = (*map(str, range(MODULUS)), "+", "=")
PLUS, EQUALS, EOS, PAD = range(MODULUS, MODULUS + 4)


def is_right(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B"]:
    """1 where the completion is the sum and EOS and nothing else, 0 where it is not, or the prompt is no sum."""
    a, plus, b, equals = jnp.pad(prompt, ((0, 0), (4, 0)), constant_values=PAD)[:, -4:].T
    asked = (a < MODULUS) & (plus == PLUS) & (b < MODULUS) & (equals == EQUALS)
    return is_number(tokens, mask, prompt) * (asked & (tokens[:, 0] == (a + b) % MODULUS))


def is_number(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B"]:
    """1 where the completion is one number and EOS, right or not."""
    second = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=PAD)[:, 1]
    return ((jnp.sum(mask, axis=1) == 2) & (tokens[:, 0] < MODULUS) & (second == EOS)).astype(jnp.float32)


def completions(num: int, seed: int, wrong: float = 0.0) -> list[dict[str, str]]:
    """Records of a sum and its answer: `prompt`, `completion`; a share `wrong` of answers is another number."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(MODULUS, size=(2, num))
    error = np.where(rng.random(num) < wrong, rng.integers(1, MODULUS, size=num), 0)
    answer = (a + b + error) % MODULUS
    return [
        {"prompt": f"{x} + {y} =", "completion": str(z)}
        for x, y, z in zip(a.tolist(), b.tolist(), answer.tolist(), strict=True)
    ]
