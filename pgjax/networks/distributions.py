"""Policy distributions as NamedTuples of arrays: pytrees for free, with the few methods policy gradients need.

Leading dimensions are batch dimensions. An action is an int32 for `Categorical` and a float vector `[..., D]` for the
others. NaN parameters give NaN log-probabilities and entropies; nothing is replaced.

The action is what is sampled, stored in batches and given to `log_prob`; `policy.env_action(action)` is what the
environment is given. They differ for `TanhGaussian` only, whose bijection would lose the action where it rounds.

The randomness of an action is apart from the policy, `policy.sample_and_log_prob(policy.noise(key))`: a rollout draws
that of all its steps at once, which costs a fraction of drawing it step by step.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pgjax.core.algorithm import Key

LOG_2PI = float(np.log(2 * np.pi))
LOGISTIC_WEIGHTS, LOGISTIC_PRECISIONS = np.array(
    [
        (0.003246343272134, 1.365340806296348),
        (0.051517477033972, 1.059523971016916),
        (0.195077912673858, 0.830791313765644),
        (0.315569823632818, 0.650732166639391),
        (0.274149576158423, 0.508135425366489),
        (0.131076880695470, 0.396313345166341),
        (0.027912418727972, 0.308904252267995),
        (0.001449567805354, 0.238212616409306),
    ],
    np.float32,
).T
"""The logistic distribution function is sum_i weight_i Phi(precision_i x) up to 3e-9 (Monahan & Stefanski, 1992)."""


class Distribution(Protocol):
    """What rollout, losses and evaluation ask of a policy."""

    def noise(self, key: Key, times: tuple[int, ...] = ()) -> Array:
        """The randomness of one action for each batch element, or of `times` such, as leading dimensions.

        It depends on the shapes of the parameters only: `jax.eval_shape` of the policy will do.
        """
        ...

    def sample_and_log_prob(self, noise: Any) -> tuple[Array, Array]:
        """The action that this `noise` leads to, and its log-probability (density)."""
        ...

    def env_action(self, action: Any) -> Array:
        """What the environment is given for this action."""
        ...

    def log_prob(self, action: Any) -> Array:
        """log pi(action), `[*batch]`: of a density where actions are continuous."""
        ...

    def entropy(self) -> Array:
        """-E[log pi(a)], `[*batch]`, in nats."""
        ...

    def kl(self, other: Any) -> Array:
        """KL(self || other) = E[log self(a) - log other(a)] with a ~ self, `[*batch]`, in nats."""
        ...

    def mode(self) -> Array:
        """The action that a deterministic evaluation takes."""
        ...


class Categorical(NamedTuple):
    """Softmax policy over n actions: p(a) = exp(logits_a) / sum_b exp(logits_b)."""

    logits: Float[Array, "*batch n"]

    def noise(self, key: Key, times: tuple[int, ...] = ()) -> Float[Array, "*times_and_batch"]:
        """Uniform on [0, 1), one number per action."""
        return jax.random.uniform(key, times + self.logits.shape[:-1], self.logits.dtype)

    def sample_and_log_prob(self, noise: Float[Array, "*batch"]) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
        """The first action whose cumulative probability exceeds the uniform noise (inverse transform sampling)."""
        cumulative = jnp.cumsum(jax.nn.softmax(self.logits), axis=-1)
        threshold = noise[..., None] * cumulative[..., -1:]
        action = jnp.sum(cumulative <= threshold, axis=-1, dtype=jnp.int32)
        return action, self.log_prob(action)

    def env_action(self, action: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """The action unchanged."""
        return action

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """logits_a - log sum_b exp(logits_b)."""
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """-sum_a p log p, with 0 log 0 = 0 for masked actions (logit -inf)."""
        return -_expected(jax.nn.softmax(self.logits), jax.nn.log_softmax(self.logits))

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """KL(self || other) = sum_a p (log p - log q)."""
        difference = jax.nn.log_softmax(self.logits) - jax.nn.log_softmax(other.logits)
        return _expected(jax.nn.softmax(self.logits), difference)

    def mode(self) -> Int[Array, "*batch"]:
        """The most probable action, of equal ones the first."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


class DiagGaussian(NamedTuple):
    """Independent normals, N(mean, exp(log_std)^2) in each of D dimensions."""

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*batch D"]

    def noise(self, key: Key, times: tuple[int, ...] = ()) -> Float[Array, "*times_and_batch D"]:
        """Standard normal, one number per dimension."""
        return jax.random.normal(key, times + self.mean.shape, self.mean.dtype)

    def sample_and_log_prob(
        self, noise: Float[Array, "*batch D"]
    ) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """mean + std noise, and its log-density."""
        action = self.mean + jnp.exp(self.log_std) * noise
        return action, jnp.sum(-0.5 * noise**2 - self.log_std - 0.5 * LOG_2PI, axis=-1)

    def env_action(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """The action unchanged."""
        return action

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """sum_i [-z_i^2 / 2 - log_std_i - log(2 pi) / 2] with z = (action - mean) / std."""
        noise = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * noise**2 - self.log_std - 0.5 * LOG_2PI, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """sum_i [log_std_i + (1 + log(2 pi)) / 2]."""
        return jnp.sum(self.log_std + 0.5 * (1.0 + LOG_2PI) + 0.0 * self.mean, axis=-1)

    def kl(self, other: "DiagGaussian") -> Float[Array, "*batch"]:
        """KL(N(m, s^2) || N(n, t^2)) = sum_i [log(t_i / s_i) + (s_i^2 + (m_i - n_i)^2) / (2 t_i^2) - 1/2]."""
        ratio = jnp.exp(2.0 * (self.log_std - other.log_std))
        distance = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(other.log_std - self.log_std + 0.5 * (ratio + distance - 1.0), axis=-1)

    def mode(self) -> Float[Array, "*batch D"]:
        """The mean."""
        return self.mean


class TanhGaussian(NamedTuple):
    """A `DiagGaussian` whose tanh the environment is given, in (-1, 1) (Haarnoja et al., 2018, appendix C).

    The action is u, before the tanh: where tanh(u) rounds to a bound, u could not be recovered from it, and the ratio
    of a policy to itself would not be 1. Log-probability and entropy are those of tanh(u):
    log p = log N(u) - sum log(1 - tanh(u)^2), with log(1 - tanh(u)^2) computed as 2 (log 2 - u - softplus(-2u)), which
    does not overflow.
    """

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*batch D"]

    def noise(self, key: Key, times: tuple[int, ...] = ()) -> Float[Array, "*times_and_batch D"]:
        """Standard normal, one number per dimension of u."""
        return DiagGaussian(*self).noise(key, times)

    def sample_and_log_prob(
        self, noise: Float[Array, "*batch D"]
    ) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """u = mean + std noise, and the log-density of tanh(u) over (-1, 1)."""
        u, log_prob = DiagGaussian(*self).sample_and_log_prob(noise)
        return u, log_prob - jnp.sum(_log_tanh_derivative(u), axis=-1)

    def env_action(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """tanh(action), in (-1, 1)."""
        return jnp.tanh(action)

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Density of tanh(action) over (-1, 1)."""
        return DiagGaussian(*self).log_prob(action) - jnp.sum(_log_tanh_derivative(action), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Entropy of the normal plus E[log(1 - tanh(u)^2)] = 2 log 2 - 2 E|u + L|, with L logistic of scale 1/2.

        For log 2 + log cosh(u) = E_L|u + L|: both have the second derivative sech(u)^2, twice the density of L, and
        become |u| far out. With L a mixture of normals, u + L is one, and E|u + L| has a closed form at any width.
        """
        mean = self.mean[..., None]
        std = jnp.sqrt(jnp.exp(2.0 * self.log_std)[..., None] + (0.5 / LOGISTIC_PRECISIONS) ** 2)
        z = mean / std
        distance = std * np.sqrt(2.0 / np.pi) * jnp.exp(-0.5 * z**2) + mean * jax.lax.erf(z / np.sqrt(2.0))
        correction = 2.0 * np.log(2.0) - 2.0 * jnp.sum(LOGISTIC_WEIGHTS * distance, axis=-1)
        return DiagGaussian(*self).entropy() + jnp.sum(correction, axis=-1)

    def kl(self, other: "TanhGaussian") -> Float[Array, "*batch"]:
        """KL(self || other): that of the normals, since both pass through the same bijection."""
        return DiagGaussian(*self).kl(DiagGaussian(*other))

    def mode(self) -> Float[Array, "*batch D"]:
        """The mean, whose tanh is the median of what the environment is given."""
        return self.mean


class Deterministic(NamedTuple):
    """All probability on one action: the policy of DDPG and analytic policy gradients."""

    action: Float[Array, "*batch D"]

    def noise(self, key: Key, times: tuple[int, ...] = ()) -> Float[Array, "*times_and_batch"]:
        """Zeros, since nothing is drawn."""
        return jnp.zeros(times + self.action.shape[:-1], self.action.dtype)

    def sample_and_log_prob(
        self, noise: Float[Array, "*batch"]
    ) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """The action, and log-probability 0."""
        return self.action, self.log_prob(self.action)

    def env_action(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """The action unchanged."""
        return action

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """0 on the action and -inf off it: a probability mass, not a density."""
        return jnp.sum(_zero_or_inf(action, self.action, -jnp.inf), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """0, NaN where the action is."""
        return jnp.sum(self.action * 0.0, axis=-1)

    def kl(self, other: "Deterministic") -> Float[Array, "*batch"]:
        """0 where the actions agree, else infinite."""
        return jnp.sum(_zero_or_inf(self.action, other.action, jnp.inf), axis=-1)

    def mode(self) -> Float[Array, "*batch D"]:
        """The action."""
        return self.action


def _expected(p: Float[Array, "*batch n"], x: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """sum_a p x with 0 x = 0 even for infinite x; the double `where` keeps the gradient finite."""
    return jnp.sum(jnp.where(p == 0, 0.0, p * jnp.where(p == 0, 0.0, x)), axis=-1)


def _log_tanh_derivative(u: Float[Array, "*any"]) -> Float[Array, "*any"]:
    return 2.0 * (np.log(2.0) - u - jax.nn.softplus(-2.0 * u))


def _zero_or_inf(a: Float[Array, "*any"], b: Float[Array, "*any"], infinity: float) -> Float[Array, "*any"]:
    return jnp.where(a == b, 0.0, infinity) + (a - b) * 0.0
