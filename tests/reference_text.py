"""What language models say of completions, read one by one: slow, and without padding."""

import functools

import jax
import numpy as np


@functools.cache
def logits_of(network):
    return jax.jit(network.logits)


def slow_log_probs(model, params, answers):
    """log pi of each (prompt, completion), read alone and without padding in it."""
    logits = logits_of(model.network)
    found = []
    for prompt, completion in answers:
        whole = np.resize([*prompt, *completion], model.network.context)
        log_prob = np.asarray(jax.nn.log_softmax(logits(params, whole[None])[0]))
        found.append(sum(log_prob[len(prompt) + t - 1, token] for t, token in enumerate(completion)))
    return np.array(found)


def answers_of(prompt, prompt_mask, completion, mask):
    """The real tokens of each row: a prompt and its completion."""
    arrays = [np.asarray(x) for x in (prompt, prompt_mask, completion, mask)]
    return [(p[pm].tolist(), c[cm].tolist()) for p, pm, c, cm in zip(*arrays, strict=True)]
