"""Answers in steps: their records, the model that judges them, and its judgement as a reward, against slow loops."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import alignment
from pgjax.alignment import sums
from pgjax.alignment.data import STEPS
from pgjax.alignment.learned_rewards import ProcessReward, StepOptions
from pgjax.alignment.models import Prompt
from pgjax.alignment.process_reward_model import StepEnds

TOKENIZER = alignment.TOKENIZERS.make("sums")
RECORD = {"prompt": "1 + 2 + 3 =", "completions": ["3", "6 6"], "labels": [True, False]}


@pytest.fixture(scope="module")
def process(tiny_token_algorithm):
    return tiny_token_algorithm("process-reward-model")


def test_steps_end_at_separators_and_the_last_at_eos():
    records = [RECORD, {"prompt": [4, 11], "completions": [[4]], "labels": [True]}]
    rows = STEPS.of(records, held_out=0, separator=";").packed(TOKENIZER, 32).train
    assert rows.completion.tolist() == [[3, sums.SEPARATOR, 6, 6, sums.EOS], [4, sums.EOS, *[sums.PAD] * 3]]
    assert rows.ends.tolist() == [[False, True, False, False, True], [False, True, False, False, False]]
    assert rows.label.tolist() == [[False, True, False, False, False], [False, True, False, False, False]]
    with pytest.warns(UserWarning, match="1 of 2 examples are longer"):
        cut = STEPS.of(records, held_out=0, separator=";", too_long="cut", max_completion=3).packed(TOKENIZER, 32)
    assert cut.train.ends.tolist() == [[False, True, False], [False, True, False]]


def test_records_that_are_no_steps_are_refused(tmp_path):
    for changes, problem in [
        ({"completions": None}, "'completions' is None"),
        ({"completions": []}, "'completions' is .."),
        ({"completions": ["3", ""]}, "'completions' is .'3', ''"),
        ({"labels": [True, 1]}, "'labels' is .True, 1"),
        ({"labels": [True]}, "there are 1 labels of 2 steps"),
        ({"prompt": 1}, "'prompt' is 1"),
    ]:
        (tmp_path / "steps.jsonl").write_text(json.dumps(RECORD | changes))
        with pytest.raises(pgjax.InputError, match=rf"steps.jsonl, line 1: {problem}.*; expected .*\"labels\": .true"):
            STEPS.make(str(tmp_path / "steps.jsonl"))
    with pytest.raises(pgjax.InputError, match="'labels' is missing"):
        STEPS.of([{k: v for k, v in RECORD.items() if k != "labels"}])
    with pytest.raises(pgjax.InputError, match=r"record 1: the step '3 ; 6' has the separator in it"):
        STEPS.of([RECORD | {"completions": ["3 ; 6", "1"]}], separator=";").packed(TOKENIZER, 32)
    with pytest.raises(pgjax.InputError, match=r"separator = '; ;' is not accepted: .* a single token, and it is 2"):
        STEPS.of([RECORD], separator="; ;").packed(TOKENIZER, 32)


def slow_scores(model, params, row):
    """Of one answer after each of its tokens, read without padding."""
    prompt, completion = (np.asarray(x)[np.asarray(mask)] for x, mask in (row[:2], row[2:4]))
    hidden = model.network.hidden(params["model"], np.concatenate([prompt, completion])[None])[0, len(prompt) :]
    return np.asarray(hidden @ params["score"]["kernel"] + params["score"]["bias"])


@pytest.mark.parametrize("outcome_only", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_loss_is_that_of_a_slow_loop(process, init, step, outcome_only):
    state, _ = step(process, init(process, jax.random.key(0)))
    algorithm = dataclasses.replace(process, outcome_only=outcome_only)
    rows = jax.tree.map(lambda x: x[:6], algorithm.data.train)
    loss, (metrics, weight) = jax.jit(algorithm.sums)(state.params, rows)
    expected, right = [], []
    for i in range(6):
        row = jax.tree.map(lambda x, i=i: x[i], rows)
        for t, score in enumerate(slow_scores(process.model, state.params, row)):
            if row.ends[t] and (not outcome_only or row.completion[t] == sums.EOS):
                p = 1.0 / (1.0 + np.exp(-score))
                expected.append(-np.log(p if row.label[t] else 1.0 - p))
                right.append((p > 0.5) == row.label[t])
    assert float(weight) == len(expected)
    assert float(loss) == pytest.approx(sum(expected), rel=1e-4)
    assert float(metrics["accuracy"]) == pytest.approx(sum(right))


@pytest.mark.parametrize("outcome_only", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_reward_is_that_of_a_slow_loop(process, init, step, outcome_only):
    state, _ = step(process, init(process, jax.random.key(0)))
    twice = jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), state.params)
    ends = StepEnds(*(jnp.array([x, x]) for x in state.ends))
    model, rows = process.model, jax.tree.map(lambda x: x[:6], process.data.train)
    for pay in ("product", "sum"):
        reward = ProcessReward(model.network, model.tokenizer, twice, ends, outcome_only, StepOptions(pay))
        found = np.asarray(reward(Prompt(rows.prompt, rows.prompt_mask), rows.completion, rows.completion_mask))
        for i in range(6):
            row, whole = jax.tree.map(lambda x, i=i: x[i], rows), 1.0
            members = [slow_scores(model, jax.tree.map(lambda x, k=k: x[k], twice), row) for k in range(2)]
            for t, token in enumerate(np.asarray(row.completion)):
                expected = 0.0
                if row.ends[t] and (not outcome_only or token == sums.EOS):
                    p = np.mean([1.0 / (1.0 + np.exp(-scores[t])) for scores in members])
                    expected = p if pay == "sum" else whole * p - whole
                    whole *= p
                assert found[i, t] == pytest.approx(expected, abs=1e-5)
            if pay == "product":
                assert found[i].sum() == pytest.approx(whole - 1.0, abs=1e-5)


def test_right_answers_are_those_of_the_file(tmp_path):
    lines = [{"prompt": "1 + 2 =", "completion": "3"}, {"prompt": "1 + 2 + 3 =", "completion": "3 ; 6"}]
    lines.append({"prompt": "1 + 2 =", "completion": "3 ; 3"})
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    reward = alignment.REWARDS.make(str(path))
    described = alignment.REWARDS.describe(reward)
    assert alignment.REWARDS.make(described["name"], **described["options"]) == reward
    packed = reward.packed(TOKENIZER, 32)

    def judged(prompt, completion, ended=True):
        prompt = jnp.array([TOKENIZER.encode(prompt)])
        tokens = jnp.array([[*TOKENIZER.encode(completion), *[sums.EOS] * ended, sums.PAD]])
        return float(packed(Prompt(prompt, prompt >= 0), tokens, tokens != sums.PAD)[0])

    assert [judged(**line) for line in lines] == [1.0] * 3
    assert judged("1 + 2 =", "3", ended=False) == 0.0
    assert judged("1 + 2 =", "3 ; 6") == judged("2 + 2 =", "3") == judged("1 + 2 + 3 =", "6 ; 3 ; 6 ; 3") == 0.0
    with pytest.raises(pgjax.InputError, match=r"answers.jsonl has no option 'reduce'"):
        alignment.REWARDS.make(str(path), reduce="min")
