"""Online direct preference optimisation: preferences between completions of the policy as it is now."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment.dpo import implicit_rewards
from pgjax.alignment.judge import Answers, Judge
from pgjax.alignment.models import Prompt
from pgjax.alignment.sampling import Rollout, Sampling, distribution, learn, prepare
from pgjax.alignment.supervised import ModelState
from pgjax.core.algorithm import Key, Metrics, Params
from pgjax.core.hyperparameters import Scalar, field, pytree
from pgjax.learning import losses


class Pairs(NamedTuple):
    """Two completions for each of N prompts."""

    prompt: Prompt
    tokens: Int[Array, "N 2 T"]
    mask: Bool[Array, "N 2 T"]
    ref_log_prob: Float[Array, "N 2"]
    """Of whole completions."""
    first: Bool[Array, "N"]
    """Whether the first is preferred."""
    weight: Float[Array, "N"]
    """0 where neither is."""


@pytree
class OnlineDPO(Sampling):
    """Online DPO (Guo et al., 2024, algorithm 1): two completions per prompt, sampled by the policy that learns, one of
    them preferred by the reward. Adam minimises the mean over pairs of

        -log sigmoid(beta (log pi(y+) / pi_ref(y+) - log pi(y-) / pi_ref(y-)))  (Rafailov et al., 2023, eq. 7).

    With labels drawn from Bradley-Terry its optimum is that of E[r] - beta KL(pi || pi_ref), as for `RLHF`; a pair of
    equal scores has no label and no weight. Rewards per token are summed; a `Judge` compares the two itself.
    """

    beta: Scalar = field("weight of the KL divergence to the start", default=0.1, accepts="(0, inf)")
    label: Literal["bradley_terry", "greater"] = field(
        "which completion is preferred: drawn with probability sigmoid(r - r'), or the one that scores higher",
        default="bradley_terry",
    )
    label_smoothing: Scalar = field("probability that a label is wrong", default=0.0, accepts="[0, 0.5)")

    group_size = 2
    row = 2

    def __post_init__(self) -> None:
        prepare(self)

    def step(self, state: ModelState) -> tuple[ModelState, Metrics]:
        """Two completions for each prompt of a batch, and `num_epochs` passes over the pairs."""
        keys = jax.random.split(jax.random.fold_in(state.key, state.iteration), 3)

        # Collect
        rollout = self.rollout(state, self.prompts(state), keys[0])

        # Label
        pairs, labelled = self.labelled(rollout, keys[1])

        # Learn
        state, learning = learn(self, state, pairs, pairs.first.size, keys[2], self.sums)
        return state, {**learning, **labelled}

    def labelled(self, rollout: Rollout, key: Key) -> tuple[Pairs, dict[str, Array]]:
        """Which of two completions is preferred, and what is to be known of the batch."""
        score = self.scored(rollout)
        mask, gap = rollout.completion.mask, self.gap(rollout, score)
        drawn = jax.random.bernoulli(key, jax.nn.sigmoid(gap))
        tied = gap == 0.0
        ref_log_prob = jnp.sum(jnp.where(mask, rollout.reading.ref_log_prob.T, 0.0), axis=1)
        pairs = Pairs(
            prompt=jax.tree.map(lambda x: x[::2], rollout.prompt),
            tokens=_in_pairs(rollout.completion.tokens),
            mask=_in_pairs(mask),
            ref_log_prob=_in_pairs(ref_log_prob),
            first=drawn if self.label == "bradley_terry" else gap > 0.0,
            weight=jnp.where(tied, 0.0, 1.0),
        )
        return pairs, self.statistics(rollout, score) | {"ties": jnp.mean(tied)}

    def gap(self, rollout: Rollout, score: Float[Array, "B"]) -> Float[Array, "N"]:
        """The log-odds that the first of two is preferred: the difference of their scores, or what a judge says less
        the difference of the penalties for a missing EOS."""
        if not isinstance(self.reward, Judge):
            return score[::2] - score[1::2]
        tokens, _, mask = rollout.completion
        answers = [Answers(tokens[i::2], mask[i::2]) for i in range(2)]
        prompt = jax.tree.map(lambda x: x[::2], rollout.prompt)
        missing = self.eos_penalty * ~self.ended(rollout.completion)
        return self.reward.compare(prompt, *answers) - missing[::2] + missing[1::2]

    def sums(self, params: Params, rows: Pairs) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """Loss and metrics of these pairs, summed, and how many of them count."""
        prompt = Prompt(*(jnp.repeat(x, 2, axis=0) for x in rows.prompt))
        tokens, mask = (x.reshape(-1, x.shape[-1]) for x in (rows.tokens, rows.mask))
        log_prob = distribution(self.model.network, params, prompt, tokens, self.temperature).log_prob(tokens.T).T
        log_ratio = _in_pairs(jnp.sum(jnp.where(mask, log_prob, 0.0), axis=1)) - rows.ref_log_prob
        chosen, rejected = jnp.where(rows.first[:, None], log_ratio, log_ratio[:, ::-1]).T
        loss = losses.dpo(chosen, rejected, self.beta, self.label_smoothing)
        metrics = {"loss": loss} | implicit_rewards(self.beta * chosen, self.beta * rejected)
        summed = jax.tree.map(lambda x: jnp.sum(rows.weight * x), metrics)
        return summed["loss"], (summed, jnp.sum(rows.weight))


def _in_pairs(x: Array) -> Array:
    return x.reshape(-1, 2, *x.shape[1:])
