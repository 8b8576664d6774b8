"""A loss of your own: PPO whose value is also drawn to zero, with a weight that is swept like any hyperparameter.

python own_loss.py
"""

import pgjax


@pgjax.pytree
class Cautious(pgjax.PPO):
    """PPO whose value is also drawn to zero."""

    shrinkage: pgjax.Scalar = pgjax.field("weight of the squared value", default=0.01, accepts="[0, inf)")

    def loss(self, params, memory, minibatch, kl_coef):
        """One number per sample, with metrics of the same shape: means over devices and minibatches are taken later."""
        loss, metrics = super().loss(params, memory, minibatch, kl_coef)
        _, output = self.network.unroll(params, memory, minibatch.obs, minibatch.reset)
        return loss + self.shrinkage * output.value**2, metrics | {"squared_value": output.value**2}


def main(total_steps=65_536):
    cautious = Cautious(pgjax.make("CartPole-v1"), learning_rate=2.5e-3, total_steps=total_steps)
    result = pgjax.sweep(cautious, seeds=2, shrinkage=[0.0, 0.01, 0.1], progress=False)
    for setting, score, _ in result.ranking():
        print(setting, f"{score:.1f}")
    print("squared value at the end, by member:", result.curves["squared_value"][:, -1].round(2))
    return result


if __name__ == "__main__":
    main()
