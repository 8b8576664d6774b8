"""Sums that code can check: records, rewards, and the estimate of pass@k."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import alignment
from pgjax.alignment import addition
from pgjax.alignment.corpora import made_by
from pgjax.alignment.data import COMPLETIONS, LABELS, PREFERENCES, PROMPTS, TEXTS
from pgjax.alignment.generation import left_padded

TOKENIZER = alignment.TOKENIZERS.make("addition")


def is_right(prompt, completion):
    """By Python, on words."""
    a, plus, b, equals = prompt.split()
    return (plus, equals) == ("+", "=") and completion == str((int(a) + int(b)) % 29)


def test_the_tokens_are_those_of_the_tokenizer():
    assert (TOKENIZER.eos, TOKENIZER.pad, TOKENIZER.vocab) == (addition.EOS, addition.PAD, addition.PAD + 1)
    assert TOKENIZER.encode("28 + 3 =") == [28, addition.PLUS, 3, addition.EQUALS]


def test_records_are_right_but_for_the_wrong_ones():
    assert all(is_right(**record) for record in addition.completions(200, 0))
    share = np.mean([is_right(**record) for record in addition.completions(2000, 1, wrong=0.7)])
    assert share == pytest.approx(0.3, abs=0.04)
    for record in made_by("addition", "preference", 100, 2):
        assert is_right(record["prompt"], record["chosen"])
        assert not is_right(record["prompt"], record["rejected"])
    records = made_by("addition", "label", 400, 3)
    assert all(record["label"] == is_right(record["prompt"], record["completion"]) for record in records)
    assert np.mean([record["label"] for record in records]) == pytest.approx(0.5, abs=0.1)
    assert [r["prompt"] for r in made_by("addition", "prompt", 5, 4)] == [
        r["prompt"] for r in addition.completions(5, 4)
    ]


def test_rewards_are_those_of_python():
    """Over completions that are right, wrong, too long, without EOS, of no number, or empty."""
    rng = np.random.default_rng(0)
    rows, expected, numbers = [], [], []
    for record in addition.completions(300, 5, wrong=0.3):
        number, other = int(record["completion"]), int(rng.integers(TOKENIZER.vocab - 2))
        ends = [[number, addition.EOS], [number], [number, other, addition.EOS], [other, addition.EOS], [addition.EOS]]
        answer = ends[rng.integers(5)]
        rows.append((record["prompt"], answer))
        whole = len(answer) == 2 and answer[1] == addition.EOS and answer[0] < 29
        numbers.append(whole)
        expected.append(whole and is_right(record["prompt"], str(answer[0])))
    tokens, mask = np.full((300, 3), addition.PAD), np.zeros((300, 3), bool)
    for row, real, (_, answer) in zip(tokens, mask, rows, strict=True):
        row[: len(answer)], real[: len(answer)] = answer, True
    prompt, _ = left_padded([TOKENIZER.encode(text) for text, _ in rows], TOKENIZER.pad)
    np.testing.assert_array_equal(addition.is_right(tokens, mask, prompt), expected)
    np.testing.assert_array_equal(addition.is_number(tokens, mask, prompt), numbers)
    np.testing.assert_array_equal(addition.is_right(tokens[:, :1], mask[:, :1], prompt), np.zeros(300))
    np.testing.assert_array_equal(addition.is_right(tokens, mask, prompt[:, 1:]), np.zeros(300))
    assert 30 < np.sum(expected) < np.sum(numbers) < 200


@pytest.mark.parametrize("kind", [TEXTS, COMPLETIONS, PREFERENCES, LABELS, PROMPTS])
def test_every_format_packs_and_holds_other_sums_out(kind):
    options = {"length": 8} if kind is TEXTS else {}
    data = kind.make("addition", examples=400, **options).packed(TOKENIZER, 16)
    assert kind.describe(data)["name"] == "addition"
    if kind is not TEXTS:
        train, held_out = ({tuple(row) for row in np.asarray(rows.prompt)} for rows in (data.train, data.held_out))
        assert train
        assert held_out
        assert not train & held_out


def test_pass_at_k_is_that_of_all_choices():
    passed = np.random.default_rng(0).random((20, 5)) < 0.3
    for k in (1, 2, 5):
        expected = [np.mean([any(c) for c in itertools.combinations(row, k)]) for row in passed]
        np.testing.assert_allclose(alignment.pass_at_k(jnp.array(passed), k), expected, atol=1e-6)
    with pytest.raises(pgjax.InputError, match="k = 6 is not accepted: expected 1 to 5"):
        alignment.pass_at_k(jnp.array(passed), 6)
