"""Countdown, a built-in language of sums to be found: "3 5 7 : 22 =" is followed by "3 * 5 + 7".

Every number of the prompt is used once, products come before sums. Read `completions` (what models learn from), then
`is_right` and `is_expression` (rewards). The words of `WORDS` are tokens 0 to 104; token 105 ends a text, token 106 is
padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

TARGETS = 100
LARGEST = 10
"""Of the numbers that are given in the records."""
GIVEN = 3
"""How many are given in the records."""
OPERATORS = ("+", "-", "*")
WORDS = (*map(str, range(TARGETS)), *OPERATORS, ":", "=")
PLUS, MINUS, TIMES, COLON, EQUALS, EOS, PAD = range(TARGETS, TARGETS + 7)
BOUND = 1_000_000
"""Products stay within it, far from where integers end."""


class _Read(NamedTuple):
    """What was read of expressions, `[B]` each."""

    total: Array
    product: Array
    sign: Array
    """Of the next product; 0 where the next number is a factor."""
    number_due: Array
    valid: Array


def is_right(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B"]:
    """1 where the completion is an expression of every number before ":" once, with the value after it, and EOS."""
    value, valid = _value(tokens, mask)
    given = jnp.cumsum(prompt == COLON, axis=1) == 0
    unused = _counts(prompt, given) - _counts(tokens, mask)
    target = jnp.pad(prompt, ((0, 0), (3, 0)), constant_values=PAD)[:, -3:]
    asked = (target[:, 0] == COLON) & (target[:, 1] < TARGETS) & (target[:, 2] == EQUALS)
    return (valid & asked & (value == target[:, 1]) & jnp.all(unused == 0, axis=1)).astype(jnp.float32)


def is_expression(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B"]:
    """1 where the completion is numbers with operators between them and EOS, whatever their value."""
    return _value(tokens, mask)[1].astype(jnp.float32)


def _counts(tokens: Int[Array, "B T"], counted: Bool[Array, "B T"]) -> Int[Array, "B numbers"]:
    """How often each number is among them."""
    return jnp.sum(jax.nn.one_hot(jnp.where(counted, tokens, -1), TARGETS, dtype=jnp.int32), axis=1)


def _value(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
    """The value of each expression, and whether it is one that ends with EOS."""
    B = tokens.shape[0]
    zero, yes = jnp.zeros(B, jnp.int32), jnp.ones(B, bool)

    def read(state: _Read, slot: tuple[Array, Array]) -> tuple[_Read, None]:
        token, counted = slot
        number, operator = token < TARGETS, (token >= PLUS) & (token <= TIMES)
        factor = number & (state.sign == 0)
        product = jnp.where(number, jnp.clip(state.product * token, -BOUND, BOUND), state.product)
        product = jnp.where(number & ~factor, state.sign * token, product)
        total = jnp.where(number & ~factor, state.total + state.product, state.total)
        sign = jnp.where(token == TIMES, 0, jnp.where(token == MINUS, -1, 1))
        valid = state.valid & jnp.where(state.number_due, number, operator | (token == EOS))
        after = _Read(total, product, jnp.where(operator, sign, state.sign), ~number, valid)
        return jax.tree.map(lambda new, old: jnp.where(counted, new, old), after, state), None

    state, _ = jax.lax.scan(read, _Read(zero, zero, zero + 1, yes, yes), (tokens.T, mask.T))
    return state.total + state.product, state.valid & jnp.any((tokens == EOS) & mask, axis=1)


def completions(num: int, seed: int, wrong: float = 0.0) -> list[dict[str, str]]:
    """Records of `GIVEN` numbers, a number that can be made of them, and one way to do it: `prompt`, `completion`; a
    share `wrong` of the ways leads to another number."""
    rng = np.random.default_rng(seed)
    records: list[dict[str, str]] = []
    while len(records) < num:
        numbers, order = rng.integers(1, LARGEST + 1, size=GIVEN), rng.permuted(np.arange(GIVEN))
        signs, others = rng.integers(len(OPERATORS), size=(2, GIVEN - 1))
        chance = rng.random()
        right, other = (_expression(numbers[order], each) for each in (signs, others))
        target = eval(right)
        if 0 <= target < TARGETS and eval(other) != target:
            prompt = f"{' '.join(map(str, numbers))} : {target} ="
            records.append({"prompt": prompt, "completion": other if chance < wrong else right})
    return records


def _expression(numbers: np.ndarray, operators: np.ndarray) -> str:
    rest = (f" {OPERATORS[operator]} {number}" for operator, number in zip(operators, numbers[1:], strict=True))
    return f"{numbers[0]}{''.join(rest)}"
