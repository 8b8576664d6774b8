"""Direct preference optimisation: preferences without a reward model, as a loss on the policy's own probabilities."""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgjax.alignment.data import PREFERENCES, Data
from pgjax.alignment.models import LANGUAGE_MODELS, LanguageModel, both_answers, log_prob_of
from pgjax.alignment.packing import Preferences
from pgjax.alignment.supervised import (
    Supervised,
    batch_of,
    held_out_means,
    in_parts,
    initial_state,
    learn,
    prepare_supervised,
)
from pgjax.core.algorithm import Key, Metrics, Params, Scores
from pgjax.core.errors import InputError
from pgjax.core.hyperparameters import TRACED, Scalar, field, pytree
from pgjax.core.text import shows_briefly
from pgjax.learning import losses


@shows_briefly
class PreferenceState(NamedTuple):
    """The `State` of learning from fixed data near a reference."""

    key: Key
    iteration: Array
    params: Params
    opt_state: Any
    reference: Float[Array, "N *answers"]
    """log pi_ref of the answers of all rows to train on, computed once."""


@pytree
class DPO(Supervised):
    """Direct preference optimisation (Rafailov et al., 2023): AdamW minimises the mean over pairs of a loss of

        h = log pi(y+ | x) / pi_ref(y+ | x) - log pi(y- | x) / pi_ref(y- | x),

    where pi_ref is the model that the run starts from: `sigmoid`, -log sigmoid(beta h), the likelihood of the
    preferences if beta log pi / pi_ref is the reward, whose optimum is that of E[r] - beta KL(pi || pi_ref);
    `robust`, the same for labels that are wrong with probability `label_smoothing`; `hinge`; and `ipo_sum`,
    (h - 1 / (2 beta))^2, or `ipo_mean`, with log-ratios divided by their number of tokens (see `losses`). What a record
    says of a margin is not used.
    """

    model: Annotated[LanguageModel, TRACED] = field("what is trained, and stayed near to", part=LANGUAGE_MODELS)
    data: Annotated[Data, TRACED] = field("preferences", default=PREFERENCES.make("grammar"), part=PREFERENCES)
    total_steps: int = field("pairs to train on", default=8192, accepts="[1, 1e18]")
    beta: Scalar = field("weight of the KL divergence to the start", default=0.1, accepts="(0, inf)")
    loss: Literal["sigmoid", "robust", "hinge", "ipo_sum", "ipo_mean"] = field("the loss of a pair", default="sigmoid")
    label_smoothing: Scalar = field("probability that a preference is wrong", default=0.0, accepts="[0, 0.5)")
    reference_free: bool = field("take log pi for log pi / pi_ref", default=False)
    length_normalized: bool = field("divide log-ratios by their number of tokens", default=False)

    unit = "pairs"
    language_model_at = "params"

    def __post_init__(self) -> None:
        prepare_supervised(self)
        _check(self)

    def init(self, key: Key) -> PreferenceState:
        """The model as it is, and what it says of the data."""
        state = initial_state(self, key, lambda _: self.model.params)
        return PreferenceState(*state, in_parts(self.referred, self.data.train, self.batch_size // self.micro_batches))

    def step(self, state: PreferenceState) -> tuple[PreferenceState, Metrics]:
        """One batch of pairs, one gradient step."""
        return learn(self, state, batch_of(self, state, (self.data.train, state.reference)), self.sums)

    def referred(self, rows: Preferences) -> Float[Array, "B 2"]:
        """log pi_ref of both answers, 0 without a reference."""
        if self.reference_free:
            return jnp.zeros((rows.prompt.shape[0], 2))
        return self.log_probs(self.model.params, rows)

    def log_probs(self, params: Params, rows: Preferences) -> Float[Array, "B 2"]:
        """log pi of the chosen and the rejected answers, read in one pass."""
        return log_prob_of(self.model.network, params, *both_answers(rows)).reshape(2, -1).T

    def sums(
        self, params: Params, batch: tuple[Preferences, Float[Array, "B 2"]]
    ) -> tuple[Array, tuple[dict[str, Array], Array]]:
        """Loss and metrics of pairs with their reference, summed, and how many they are."""
        rows, reference = batch
        log_prob = self.log_probs(params, rows)
        log_ratio = log_prob - reference
        if self.length_normalized or self.loss == "ipo_mean":
            log_ratio /= jnp.stack([jnp.sum(mask, axis=1) for mask in (rows.chosen_mask, rows.rejected_mask)], axis=1)
        chosen, rejected = log_ratio.T
        loss = self.pair_loss(chosen, rejected)
        metrics = {"loss": loss, "logps/chosen": log_prob[:, 0], "logps/rejected": log_prob[:, 1]}
        metrics |= implicit_rewards(self.beta * chosen, self.beta * rejected)
        return jnp.sum(loss), (jax.tree.map(jnp.sum, metrics), jnp.float32(loss.size))

    def pair_loss(self, chosen: Float[Array, "B"], rejected: Float[Array, "B"]) -> Float[Array, "B"]:
        """The loss of pairs with these log-ratios."""
        if self.loss in ("sigmoid", "robust"):
            smoothed = losses.dpo if self.loss == "sigmoid" else losses.robust_dpo
            return smoothed(chosen, rejected, self.beta, self.label_smoothing)
        of_pair = losses.hinge if self.loss == "hinge" else losses.ipo
        return of_pair(chosen, rejected, self.beta)

    def evaluate(self, state: PreferenceState, key: Key, num: int) -> Scores:
        """`loss`, and the rewards beta log pi / pi_ref of `num` held-out pairs: `rewards/chosen`, `rewards/rejected`,
        `rewards/margins` between them, and `rewards/accuracies`, how often the chosen one is higher."""

        def sums(params: Params, rows: Preferences) -> tuple[Array, tuple[dict[str, Array], Array]]:
            return self.sums(params, (rows, self.referred(rows)))

        return held_out_means(self, state.params, key, num, sums)

    def language_model(self, state: PreferenceState) -> LanguageModel:
        """The model of `state`."""
        return self.model.with_params(state.params)


def _check(dpo: DPO) -> None:
    """Refuse options that the loss does not have; numbers that are traced are not looked at."""
    smoothing = dpo.label_smoothing
    if dpo.loss not in ("sigmoid", "robust") and isinstance(smoothing, (int, float)) and smoothing > 0.0:
        raise InputError(
            f"DPO.label_smoothing = {smoothing:g} is not accepted: expected 0, or loss 'sigmoid' or 'robust' instead "
            f"of {dpo.loss!r}"
        )
    if dpo.loss.startswith("ipo") and dpo.length_normalized:
        raise InputError(
            f"DPO.length_normalized = True is not accepted with loss = {dpo.loss!r}: expected 'ipo_mean' for means "
            "over tokens"
        )


def implicit_rewards(chosen: Float[Array, "B"], rejected: Float[Array, "B"]) -> dict[str, Array]:
    """What is reported of the rewards of pairs, by the names that TRL gives it."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": jnp.where(chosen == rejected, 0.5, chosen > rejected),
    }
