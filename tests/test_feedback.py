"""AI feedback: the constitution beside checks in Python, a judge against single readings, critiques and revisions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import alignment
from pgjax.alignment import constitution, grammar
from pgjax.alignment.generation import left_padded
from pgjax.alignment.judge import Answers, Judge, JudgeOptions
from pgjax.alignment.models import Prompt
from pgjax.alignment.revision import Revision, as_completions, as_preferences, revise

TOKENIZER = alignment.TOKENIZERS.make("constitution")


@pytest.fixture(scope="module")
def model(tiny_language_model):
    network = dataclasses.replace(tiny_language_model.network, vocab=TOKENIZER.vocab, context=64)
    params = jax.tree.map(lambda x: 3.0 * x, network.init_text(jax.random.key(5)))
    return alignment.LanguageModel(network, TOKENIZER, params)


def padded(texts, wide=30):
    """As answers, with EOS."""
    tokens, mask = np.full((len(texts), wide), TOKENIZER.pad), np.zeros((len(texts), wide), bool)
    for i, text in enumerate(texts):
        ids = [*TOKENIZER.encode(text), TOKENIZER.eos]
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    return Answers(jnp.asarray(tokens), jnp.asarray(mask))


def prompts_of(texts):
    return Prompt(*map(jnp.asarray, left_padded([TOKENIZER.encode(text) for text in texts], TOKENIZER.pad)))


def test_rules_are_those_of_python_and_the_records_keep_or_break_them():
    records = constitution.labelled(300, 0)
    tokens, mask = padded([r["completion"] for r in records])
    kept = constitution.rules_kept(tokens, mask, prompts_of([r["prompt"] for r in records]).tokens)
    broken = [constitution.faults(r["prompt"], r["completion"]) for r in records]
    assert kept.tolist() == [[name not in row for name in constitution.RULES] for row in broken]
    assert [r["label"] for r in records] == [not row for row in broken]
    assert {name for row in broken for name in row} == set(constitution.RULES)
    assert 50 < sum(map(bool, broken)) < 250
    share = constitution.kept(tokens, mask, prompts_of([r["prompt"] for r in records]).tokens)
    np.testing.assert_allclose(share, [1 - len(row) / 3 for row in broken], rtol=1e-6)
    for record in constitution.preferences(50, 1):
        chosen, rejected = (constitution.faults(record["prompt"], record[x]) for x in ("chosen", "rejected"))
        assert len(chosen) < len(rejected)


def test_judgements_are_for_the_answer_that_breaks_fewer_rules_in_either_place():
    verdicts = []
    for record in constitution.judgements(60, 0):
        prompt, a, b = record["prompt"].removesuffix(" ?").split(" | ")
        verdicts.append(record["completion"] == "A")
        assert verdicts[-1] == (len(constitution.faults(prompt, a)) < len(constitution.faults(prompt, b)))
    assert 15 < sum(verdicts) < 45


def test_revisions_name_what_is_broken_and_keep_every_rule():
    records = constitution.revisions(80, 0)
    fine = 0
    for record in records:
        prompt, answer = record["prompt"].removesuffix(" |").split(" | ")
        critique, revision = record["completion"].split(" | ")
        found = constitution.faults(prompt, answer)
        assert critique == (" ".join(found) or "fine")
        assert not constitution.faults(prompt, revision)
        assert grammar.parses(f"{prompt} {revision}")
        fine += answer == revision
        assert (answer == revision) == (not found)
    assert 10 < fine < 60


def test_a_judge_is_that_of_one_reading_at_a_time(model):
    rng = np.random.default_rng(0)
    prompts, a, b = (
        [" ".join(rng.choice(grammar.WORDS, rng.integers(least, 6))) for _ in range(7)] for least in (1, 0, 1)
    )

    @jax.jit
    def logits(ids):
        return model.network.logits(model.params, ids)

    def said(prompt, first, second):
        ids = TOKENIZER.encode(f"{prompt} | {first} | {second} ?")
        row = np.asarray(logits(np.resize(ids, (1, 32))))[0, len(ids) - 1]
        yes, no = (row[TOKENIZER.encode(word)[0]] for word in "AB")
        return 1.0 / (1.0 + np.exp(no - yes))

    once = [said(*texts) for texts in zip(prompts, a, b, strict=True)]
    both = [(p + 1.0 - said(*texts)) / 2 for p, texts in zip(once, zip(prompts, b, a, strict=True), strict=True)]
    for swap, expected in ((False, once), (True, both)):
        judge = Judge(model, JudgeOptions(swap=swap))
        found = judge.compare(prompts_of(prompts), padded(a, 8), padded(b, 8))
        np.testing.assert_allclose(jax.nn.sigmoid(found), expected, rtol=1e-4)
    judge = Judge(model)
    forth, back = (
        judge.compare(prompts_of(prompts), *x) for x in [(padded(a, 8), padded(b, 8)), (padded(b, 8), padded(a, 8))]
    )
    np.testing.assert_allclose(forth, -back, atol=1e-5)
    alone = judge(prompts_of(prompts), *padded(a, 8))
    np.testing.assert_allclose(alone, judge.compare(prompts_of(prompts), padded(a, 8), padded([""] * 7, 3)), atol=1e-5)


@pytest.mark.slow
def test_a_judge_relabels_records(model):
    records = constitution.preferences(9, 3)
    judge = Judge(model)
    found = judge.relabel(records)
    texts = [[r[name] for r in records] for name in ("prompt", "chosen", "rejected")]
    log_odds = judge.compare(prompts_of(texts[0]), *map(padded, texts[1:]))
    for old, new, x in zip(records, found, log_odds.tolist(), strict=True):
        assert (new["chosen"] == old["chosen"]) == (x >= 0)
        assert {new["chosen"], new["rejected"]} == {old["chosen"], old["rejected"]}
        assert new["margin"] == pytest.approx(abs(x), abs=1e-4)
    again = judge.relabel([r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in records])
    assert [r["chosen"] for r in again] == [r["chosen"] for r in found]


@pytest.mark.slow
def test_online_dpo_takes_the_labels_of_a_judge(model, tiny_token_algorithm, init):
    prompts = alignment.PROMPTS.make("constitution", examples=64)
    judge = Judge(model)
    online = alignment.OnlineDPO(
        model, judge, prompts, 48, batch_size=8, num_minibatches=2, max_tokens=5, label="greater", eos_penalty=0.0
    )
    state = init(online, jax.random.key(0))

    @jax.jit
    def labelled(state):
        rollout = online.rollout(state, online.prompts(state), jax.random.key(1))
        return rollout, online.labelled(rollout, jax.random.key(2))[0]

    rollout, pairs = labelled(state)
    first, second = (Answers(rollout.completion.tokens[i::2], rollout.completion.mask[i::2]) for i in range(2))
    expected = judge.compare(jax.tree.map(lambda x: x[::2], rollout.prompt), first, second)
    assert pairs.first.tolist() == (expected > 0).tolist()
    np.testing.assert_allclose(rollout.reward, judge(rollout.prompt, *rollout.completion[::2]), atol=1e-4)
    penalised = dataclasses.replace(online, eos_penalty=1e6)
    ended = penalised.ended(rollout.completion)
    for gap, a, b in zip(penalised.gap(rollout, None), ended[::2], ended[1::2], strict=True):
        assert a == b or (gap > 0) == bool(a)


def test_revisions_are_what_the_model_writes(model):
    prompts = ["a dog", "the two", "a"]
    found = revise(model, prompts, jax.random.key(0), 6)
    assert [r.prompt for r in found] == prompts
    assert all(0 <= len(r.answer.split()) <= 6 for r in found)
    assert found == revise(model, prompts, jax.random.key(0), 6, critic=model)
    rows = [Revision("p", "a", "fine", "a"), Revision("p", "b", "long", "c"), Revision("p", "b", "long", "")]
    assert as_completions(rows) == [{"prompt": "p", "completion": "a"}, {"prompt": "p", "completion": "c"}]
    assert as_preferences(rows) == [{"prompt": "p", "chosen": "c", "rejected": "b"}]


def test_bad_judges_are_refused(model, tiny_language_model):
    with pytest.raises(pgjax.InputError, match="Judge: first = 'A B' is not accepted: expected a single token"):
        Judge(model, JudgeOptions(first="A B"))
    with pytest.raises(pgjax.InputError, match="the word 'A' is not in the vocabulary"):
        Judge(tiny_language_model)
    with pytest.raises(pgjax.InputError, match="critic has another tokenizer than model"):
        revise(model, ["a"], jax.random.key(0), 4, critic=tiny_language_model)
    short = dataclasses.replace(model, network=dataclasses.replace(model.network, context=12))
    with pytest.raises(pgjax.InputError, match=r"RLHF.reward has context = 12, and reads up to 1\d tokens"):
        alignment.RLHF(model, Judge(short), alignment.PROMPTS.make("constitution"), max_tokens=4)
