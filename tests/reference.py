"""Return estimators by direct summation over one trajectory `[T]`, in float64: slow, and as close to print as possible.

None of them is a recursion over time. `end(t)` is the last step that belongs to the return of step t: the first one at
or after t where the episode is terminated or truncated, else the last step of the rollout.
"""

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
    """v_t = V_t + sum_{s=t}^{end} gamma^(s-t) (prod_{i=t}^{s-1} c_i) rho_s delta_s, and the advantage."""
    T = len(reward)
    target = np.zeros(T)
    for t in range(T):
        target[t] = float(value[t])
        for s in range(t, end(t, terminated, truncated) + 1):
            trace = 1.0
            for i in range(t, s):
                trace *= gae_lambda * min(c_clip, float(ratio[i]))
            delta = float(reward[s]) + gamma * bootstrap(s, next_value, terminated) - float(value[s])
            target[t] += gamma ** (s - t) * trace * min(rho_clip, float(ratio[s])) * delta
    advantage = np.zeros(T)
    for t in range(T):
        following = bootstrap(t, next_value, terminated) if end(t, terminated, truncated) == t else target[t + 1]
        advantage[t] = min(rho_clip, float(ratio[t])) * (float(reward[t]) + gamma * following - float(value[t]))
    return target, advantage
