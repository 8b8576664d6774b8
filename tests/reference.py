"""Return estimators by direct summation over one trajectory `[T]`, in float64: slow, and as close to print as possible.
At the end, a finite MDP's exact quantities by enumeration.

None of them is a recursion over time. `end(t)` is the last step that belongs to the return of step t: the first one at
or after t where the episode is terminated or truncated, else the last step of the rollout.
"""

from dataclasses import dataclass

import numpy as np


def end(t, terminated, truncated):
    for s in range(t, len(terminated)):
        if terminated[s] or truncated[s]:
            return s
    return len(terminated) - 1


def bootstrap(s, next_value, terminated):
    """Value of the successor of step s: zero where it is absorbing."""
    return 0.0 if terminated[s] else float(next_value[s])


def reward_to_go(reward, terminated, truncated, gamma, next_value=None):
    """sum_{s=t}^{end} gamma^(s-t) r_s + gamma^(end-t+1) V(successor of end)."""
    T = len(reward)
    next_value = np.zeros(T) if next_value is None else next_value
    result = np.zeros(T)
    for t in range(T):
        last = end(t, terminated, truncated)
        for s in range(t, last + 1):
            result[t] += gamma ** (s - t) * float(reward[s])
        result[t] += gamma ** (last - t + 1) * bootstrap(last, next_value, terminated)
    return result


def n_step(reward, next_value, terminated, truncated, gamma, n):
    """As `reward_to_go`, with at most n rewards."""
    T = len(reward)
    result = np.zeros(T)
    for t in range(T):
        last = min(t + n - 1, end(t, terminated, truncated))
        for s in range(t, last + 1):
            result[t] += gamma ** (s - t) * float(reward[s])
        result[t] += gamma ** (last - t + 1) * bootstrap(last, next_value, terminated)
    return result


def lambda_return(reward, next_value, terminated, truncated, gamma, gae_lambda):
    """(1 - lambda) sum_{n=1}^{N-1} lambda^(n-1) G_{t:t+n} + lambda^(N-1) G_{t:t+N}, N steps being left (eq. 12.3)."""
    T = len(reward)
    G = {n: n_step(reward, next_value, terminated, truncated, gamma, n) for n in range(1, T + 1)}
    result = np.zeros(T)
    for t in range(T):
        N = end(t, terminated, truncated) - t + 1
        for n in range(1, N):
            result[t] += (1.0 - gae_lambda) * gae_lambda ** (n - 1) * G[n][t]
        result[t] += gae_lambda ** (N - 1) * G[N][t]
    return result


def gae(reward, value, next_value, terminated, truncated, gamma, gae_lambda):
    """sum_{s=t}^{end} (gamma lambda)^(s-t) delta_s."""
    T = len(reward)
    result = np.zeros(T)
    for t in range(T):
        for s in range(t, end(t, terminated, truncated) + 1):
            delta = float(reward[s]) + gamma * bootstrap(s, next_value, terminated) - float(value[s])
            result[t] += (gamma * gae_lambda) ** (s - t) * delta
    return result


def vtrace(reward, value, next_value, terminated, truncated, gamma, ratio, gae_lambda=1.0, rho_clip=1.0, c_clip=1.0):
    """v_t = V_t + sum_{s=t}^{end} gamma^(s-t) (prod_{i=t}^{s-1} c_i) rho_s delta_s with c = lambda min(c_clip, ratio),
    and A_t = delta_t + sum_{s=t+1}^{end} gamma^(s-t) lambda (prod_{i=t+1}^{s-1} c_i) rho_s delta_s."""
    T = len(reward)
    ratio = np.asarray(ratio, np.float64)
    rho, c = np.minimum(rho_clip, ratio), gae_lambda * np.minimum(c_clip, ratio)
    target, advantage = np.zeros(T), np.zeros(T)
    for t in range(T):
        target[t] = float(value[t])
        for s in range(t, end(t, terminated, truncated) + 1):
            delta = float(reward[s]) + gamma * bootstrap(s, next_value, terminated) - float(value[s])
            later = gamma ** (s - t) * gae_lambda * np.prod(c[t + 1 : s]) * rho[s] * delta
            target[t] += gamma ** (s - t) * np.prod(c[t:s]) * rho[s] * delta
            advantage[t] += delta if s == t else later
    return target, advantage


@dataclass(frozen=True)
class TabularReference:
    """A softmax policy with logits [H, S, A] in a finite MDP of horizon H that starts in state 0, by loops.

    P is [S, A, S + 1], where the last successor ends the episode, and r [S, A].
    """

    P: np.ndarray
    r: np.ndarray
    logits: np.ndarray
    gamma: float

    @property
    def policy(self):
        weights = np.exp(self.logits - self.logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def action_values(self):
        """Q_t(s, a) = r + gamma sum_s' P V_{t+1}(s'), from the last step back."""
        H, S, A = self.logits.shape
        Q, later = np.zeros((H, S, A)), np.zeros(S)
        for t in reversed(range(H)):
            for s in range(S):
                for a in range(A):
                    Q[t, s, a] = self.r[s, a] + self.gamma * self.P[s, a, :S] @ later
            later = (self.policy[t] * Q[t]).sum(-1)
        return Q

    def values(self):
        return (self.policy * self.action_values()).sum(-1)

    def expected_return(self):
        return self.values()[0, 0]

    def visits(self, steps):
        """Probability of (time, state) at each of so many steps of a rollout that starts again when an episode ends."""
        H, S, A = self.logits.shape
        result = np.zeros((steps, H, S))
        result[0, 0, 0] = 1.0
        for step in range(steps - 1):
            for t in range(H):
                for s in range(S):
                    for a in range(A):
                        weight = result[step, t, s] * self.policy[t, s, a]
                        if t + 1 < H:
                            result[step + 1, t + 1] += weight * self.P[s, a, :S]
                            result[step + 1, 0, 0] += weight * self.P[s, a, S]
                        else:
                            result[step + 1, 0, 0] += weight
        return result

    def scores(self):
        """d log pi_t(a|s) / d logits[t, s, :] as [H, S, A (action), A (logit)]."""
        return np.eye(self.logits.shape[-1]) - self.policy[..., None, :]

    def gradient(self):
        """sum_t gamma^t sum_s P(s_t = s) sum_a pi(a|s) grad log pi(a|s) Q_t(s, a), the policy-gradient theorem."""
        H, S, A = self.logits.shape
        reached, result = np.zeros((H, S)), np.zeros((H, S, A))
        reached[0, 0] = 1.0
        for t in range(H):
            for s in range(S):
                for a in range(A):
                    weight = reached[t, s] * self.policy[t, s, a]
                    result[t, s] += self.gamma**t * weight * self.action_values()[t, s, a] * self.scores()[t, s, a]
                    if t + 1 < H:
                        reached[t + 1] += weight * self.P[s, a, :S]
        return result

    def gradient_over_steps(self, steps):
        """The mean over the steps of a rollout of sum_a pi grad log pi Q: what an actor-critic follows."""
        advantage = self.action_values() - self.values()[..., None]
        per_state = np.einsum("hsa,hsa,hsab->hsb", self.policy, advantage, self.scores())
        return self.visits(steps).mean(0)[..., None] * per_state

    def fisher(self, weights):
        """sum over states of weight sum_a pi grad log pi grad log pi^T, [H S A, H S A], for logits that are a table."""
        H, S, A = self.logits.shape
        result = np.zeros((H * S, A, H * S, A))
        for i, weight in enumerate(weights):
            for a in range(A):
                score = self.scores().reshape(H * S, A, A)[i, a]
                result[i, :, i, :] += weight * self.policy.reshape(H * S, A)[i, a] * np.outer(score, score)
        return result.reshape(H * S * A, H * S * A)
