"""An algorithm of your own: advantage-weighted regression, on-policy (after Peng et al., 2019).

The policy imitates its own actions, each weighed by exp(A / temperature), up to a largest weight.

    python own_algorithm.py
"""

import jax
import jax.numpy as jnp
import optax

import pgjax
from pgjax import losses
from pgjax.algorithms.in_environment import learning_rates
from pgjax.algorithms.on_policy import OnPolicy, collect, gae_samples, initial_state
from pgjax.learning.optimizers import adam, mean_gradient


@pgjax.pytree
class AWR(OnPolicy):
    """Advantage-weighted regression: E[-min(exp(A / temperature), 20) log pi(a|s)] + vf_coef E[value loss]."""

    learning_rate: pgjax.Scalar = pgjax.field("step size of Adam", default=3e-3, accepts="[0, inf)")
    temperature: pgjax.Scalar = pgjax.field("of the weights, in deviations", default=1.0, accepts="(0, inf)")
    vf_coef: pgjax.Scalar = pgjax.field("weight of the value loss", default=0.5, accepts="[0, inf)")
    gae_lambda: pgjax.Scalar = pgjax.field("lambda of the generalised advantage", default=0.95, accepts="[0, 1]")
    normalize_advantage: bool = pgjax.field("bring advantages to mean 0, standard deviation 1", default=True)

    def init(self, key):
        """The start of a run: parameters, environments, and what the optimiser carries."""
        return initial_state(self, key, adam(self.learning_rate, self.max_grad_norm).init)

    def step(self, state):
        """One iteration. Its randomness is addressed, not threaded: iteration i draws from fold_in(key, i)."""
        # Collect
        key = jax.random.fold_in(state.key, state.iteration)
        next_state, batch, metrics = collect(self, state, key)

        # Credit
        samples = gae_samples(self, batch)

        # Learn
        (learning_rate,) = learning_rates(self, state, self.learning_rate)
        grads, learning = mean_gradient(self.loss)(state.params, state.rollout.memory, samples)
        updates, opt_state = adam(learning_rate, self.max_grad_norm).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return next_state._replace(params=params, opt_state=opt_state), metrics | learning

    def loss(self, params, memory, samples):
        """One number per sample, `[T, B]`."""
        _, output = self.network.unroll(params, memory, samples.obs, samples.reset)
        weight = jnp.minimum(jnp.exp(samples.advantage / self.temperature), 20.0)
        policy_loss = -weight * output.distribution.log_prob(samples.action)
        value_loss = losses.value_loss(output.value, samples.value_target)
        return policy_loss + self.vf_coef * value_loss, {"policy_loss": policy_loss, "weight": weight}


pgjax.register_algorithm("awr", AWR)  # so that `pgjax train awr --import own_algorithm --env CartPole-v1` knows it


def main(total_steps=409_600, directory="runs/awr"):
    env = pgjax.make("CartPole-v1")
    awr = AWR(env, num_envs=32, num_steps=32, total_steps=total_steps)
    result = pgjax.run(awr, seed=0, directory=directory, progress=False)
    print("mean return:", float(pgjax.evaluate(awr, result.state, jax.random.key(1)).mean))
    result = pgjax.sweep(awr, seeds=2, temperature=[0.3, 1.0, 3.0], progress=False)
    for setting, score, _ in result.ranking():
        print(setting, f"{score:.1f}")
    return result


if __name__ == "__main__":
    main()
