"""REINFORCE with the mean of the other answers as its baseline."""

from typing import Literal

from pgjax.alignment.grpo import GRPO
from pgjax.core.hyperparameters import field, pytree
from pgjax.learning import losses


@pytree
class RLOO(GRPO):
    """REINFORCE leave-one-out (Kool et al., 2019; Ahmadian et al., 2024, eq. 8): each completion against the mean of
    the others to the same prompt, less the KL divergence of completions; an unbiased policy gradient, as long as a
    batch is one minibatch and passed over once, up to a constant.

    It is `GRPO` with other defaults. Minibatches after the first are corrected by clipped ratios.
    """

    group_size: int = field("completions of each prompt", default=4, accepts="[2, inf)")
    baseline: Literal["mean", "leave_one_out"] = field(
        "what an answer is compared to: the mean of its group, or of the others in it", default="leave_one_out"
    )
    scale: Literal["std", "none"] = field(
        "what advantages are divided by: the standard deviation of the group, or nothing", default="none"
    )
    aggregate: losses.Aggregation = field(
        "how tokens become one loss: all alike, by completions, or divided by max_tokens", default="constant"
    )
