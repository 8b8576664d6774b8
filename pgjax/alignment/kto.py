"""Kahneman-Tversky optimisation: answers that were called good or bad by themselves, without pairs."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.alignment.data import LABELS, Data
from pgjax.alignment.dpo import PreferenceState
from pgjax.alignment.models import LANGUAGE_MODELS, LanguageModel, Prompt, log_prob_of
from pgjax.alignment.packing import Labelled
from pgjax.alignment.supervised import (
    Supervised,
    batch_of,
    held_out_rows,
    in_parts,
    initial_state,
    learn,
    prepare_supervised,
)
from pgjax.core.algorithm import Key, Metrics, Params, Scores
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, Scalar, field, pytree
from pgjax.core.metrics import Mean
from pgjax.learning import losses


@pytree
class KTO(Supervised):
    """Kahneman-Tversky optimisation (Ethayarajh et al., 2024, eq. 8): AdamW minimises the mean over answers of

        w (1 - sigmoid(s beta (log pi(y | x) / pi_ref(y | x) - z))),

    s = 1 and w = `desirable_weight` where the label is true, s = -1 and w = `undesirable_weight` where it is false;
    pi_ref is the model that the run starts from. The reference point z is an estimate of KL(pi || pi_ref) without
    gradient: the mean log-ratio of the batch's completions after prompts that are not theirs, each after that of the
    next row, or 0 if that is less.
    """

    model: Annotated[LanguageModel, TRACED] = field("what is trained, and stayed near to", part=LANGUAGE_MODELS)
    data: Annotated[Data, TRACED] = field("labelled completions", default=LABELS.make("grammar"), part=LABELS)
    total_steps: int = field("completions to train on", default=8192, accepts="[1, 1e18]")
    beta: Scalar = field("weight of the KL divergence to the start", default=0.1, accepts="(0, inf)")
    desirable_weight: Scalar = field("of completions whose label is true", default=1.0, accepts="[0, inf)")
    undesirable_weight: Scalar = field("of completions whose label is false", default=1.0, accepts="[0, inf)")

    unit = "completions"
    language_model_at = "params"

    def __post_init__(self) -> None:
        prepare_supervised(self)
        if self.batch_size < 2:
            raise InputError(
                f"KTO.batch_size = {self.batch_size} is not accepted: expected 2 or more, for mismatched pairs"
            )

    def init(self, key: Key) -> PreferenceState:
        """The model as it is, and what it says of the data."""
        state = initial_state(self, key, lambda _: self.model.params)
        return PreferenceState(*state, self.log_probs(self.model.params, self.data.train))

    def step(self, state: PreferenceState) -> tuple[PreferenceState, Metrics]:
        """One batch of completions, one gradient step."""
        rows, reference = batch_of(self, state, (self.data.train, state.reference))
        kl = jnp.full(self.batch_size, self.kl(state.params, rows))
        state, metrics = learn(self, state, (rows, reference, kl), self.sums)
        return state, _by_label(metrics)

    def log_probs(self, params: Params, rows: Labelled) -> Float[Array, "B"]:
        """log pi of completions, read in parts."""
        return in_parts(lambda part: self.log_prob(params, part), rows, self.batch_size // self.micro_batches)

    def log_prob(self, params: Params, rows: Labelled) -> Float[Array, "B"]:
        """log pi of completions, read at once."""
        prompt = Prompt(rows.prompt, rows.prompt_mask)
        return log_prob_of(self.model.network, params, prompt, rows.completion, rows.completion_mask)

    def kl(self, params: Params, rows: Labelled) -> Float[Array, ""]:
        """The reference point."""
        completion, mask = (jnp.roll(x, -1, axis=0) for x in (rows.completion, rows.completion_mask))
        mismatched = rows._replace(completion=completion, completion_mask=mask)
        policy, reference = (self.log_probs(x, mismatched) for x in (params, self.model.params))
        return jnp.maximum(jnp.mean(policy - reference), 0.0)

    def sums(
        self, params: Params, batch: tuple[Labelled, Float[Array, "B"], Float[Array, "B"]]
    ) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """Loss and metrics of completions with their reference and the reference point, summed, and how many there
        are."""
        rows, reference, kl = batch
        log_prob = self.log_prob(params, rows)
        log_ratio = log_prob - reference
        weights = self.desirable_weight, self.undesirable_weight
        loss = losses.kto(log_ratio, rows.label, kl, self.beta, *weights)
        good = rows.label.astype(jnp.float32)
        metrics = {"loss": loss, "kl": kl, "desirable": good, "undesirable": 1.0 - good}
        for name, one in (("chosen", good), ("rejected", 1.0 - good)):
            metrics |= {f"rewards/{name}": one * self.beta * log_ratio, f"logps/{name}": one * log_prob}
        return jnp.sum(loss), (jax.tree.map(jnp.sum, metrics), jnp.float32(loss.size))

    def evaluate(self, state: PreferenceState, key: Key, num: int) -> Scores:
        """Of `num` held-out completions: `loss`, `kl`, the reference point, the rewards beta log pi / pi_ref of those
        whose label is true and false, `rewards/chosen` and `rewards/rejected`, and `rewards/margins` between them."""
        rows = held_out_rows(self.data, key, num)
        log_prob, reference = (self.log_probs(x, rows) for x in (state.params, self.model.params))
        kl = self.kl(state.params, rows)
        weights = self.desirable_weight, self.undesirable_weight
        loss = losses.kto(log_prob - reference, rows.label, kl, self.beta, *weights)
        reward = self.beta * (log_prob - reference)
        chosen, rejected = (losses.masked_mean(reward, label) for label in (rows.label, ~rows.label))
        return {
            "loss": jnp.mean(loss),
            "kl": kl,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
        }

    def language_model(self, state: PreferenceState) -> LanguageModel:
        """The model of `state`."""
        return self.model.with_params(state.params)


def _by_label(metrics: Metrics) -> Metrics:
    """Means over the completions of either label, instead of over all."""
    for label, count in (("chosen", metrics.pop("desirable")), ("rejected", metrics.pop("undesirable"))):
        for name in (f"rewards/{label}", f"logps/{label}"):
            metrics[name] = Mean(metrics[name], count)
    return metrics
