"""Built-in languages beside the grammar and addition: records, and rewards against checks of words in Python."""

import collections
import itertools
import re

import numpy as np
import pytest

from pgjax import alignment
from pgjax.alignment import countdown, sums, walks
from pgjax.alignment.corpora import CORPORA, languages, made_by
from pgjax.alignment.data import COMPLETIONS, LABELS, PREFERENCES, PROMPTS, STEPS, TEXTS
from pgjax.alignment.generation import left_padded

MODULES = {"sums": sums, "countdown": countdown, "walks": walks}
REPLACEMENTS = {"sums": ";", "countdown": "*", "walks": "a"}


def altered(name, num, longest=9):
    """Prompts with completions as words, right ones and others: changed, cut, too long, empty, without EOS."""
    rng = np.random.default_rng(0)
    words, rows = MODULES[name].WORDS, []
    for record in made_by(name, "completion", num):
        completion = record["completion"].split()
        kind = rng.integers(6)
        place = rng.integers(len(completion))
        if kind == 1:
            completion[place] = rng.choice([rng.choice(words), REPLACEMENTS[name]])
        if kind == 2:
            completion = completion[:place]
        if kind == 3:
            completion = [*completion[:place], rng.choice(words), *completion[place:]]
        if kind == 4:
            completion = [*completion, *rng.choice(words, 2)]
        rows.append((record["prompt"].split(), completion[: longest - 1], bool(kind != 5)))
    return rows


def arrays(name, rows, longest=9):
    tokenizer = alignment.TOKENIZERS.make(name)
    prompt, _ = left_padded([tokenizer.encode(" ".join(words)) for words, _, _ in rows], tokenizer.pad)
    tokens, mask = np.full((len(rows), longest), tokenizer.pad), np.zeros((len(rows), longest), bool)
    for i, (_, words, ended) in enumerate(rows):
        ids = tokenizer.encode(" ".join(words)) + [tokenizer.eos] * ended
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    return tokens, mask, np.asarray(prompt)


def sums_so_far(prompt):
    numbers = [int(word) for word in prompt if word.isdigit()]
    return [sum(numbers[: i + 1]) % 10 for i in range(1, len(numbers))]


def test_rewards_of_sums_are_those_of_python():
    rows = altered("sums", 400)
    answers, steps = [], []
    for prompt, words, ended in rows:
        truth, row, ends = sums_so_far(prompt), np.zeros(9), 0
        answers.append(bool(ended and words and words[-1] == str(truth[-1])))
        parts = " ".join(words).split(";")
        for k, part in enumerate(parts):
            ends += len(part.split())
            if ends < len(words) or ended:
                right = k < len(truth) and part.split() == [str(truth[k])]
                row[ends] = right and (k < len(parts) - 1 or k == len(truth) - 1)
            ends += 1
        steps.append(row)
    found = arrays("sums", rows)
    np.testing.assert_array_equal(sums.is_right(*found), answers)
    np.testing.assert_array_equal(sums.right_steps(*found), steps)
    assert 150 < sum(answers) < 350
    assert sum(row.max() < 1 for row in steps) + sum(row.sum() != row.max() for row in steps) > 100


def test_rewards_of_countdown_are_those_of_python():
    rows = altered("countdown", 400)
    right, expression = [], []
    for prompt, words, ended in rows:
        whole = bool(ended and re.fullmatch(r"\d+( [+*-] \d+)*", " ".join(words)))
        given, target = prompt[: prompt.index(":")], int(prompt[-2])
        used = collections.Counter(words[::2]) == collections.Counter(given)
        expression.append(whole)
        right.append(whole and used and eval(" ".join(words)) == target)
    found = arrays("countdown", rows)
    np.testing.assert_array_equal(countdown.is_expression(*found), expression)
    np.testing.assert_array_equal(countdown.is_right(*found), right)
    assert 50 < sum(right) < sum(expression) < 350


def test_rewards_of_walks_are_those_of_python():
    rows = altered("walks", 400, longest=12)
    expected = []
    for prompt, words, _ in rows:
        walk = [walks.WORDS.index(word) for word in (*prompt, *words)]
        length = next((n for n, node in enumerate(walk, 1) if node == walks.GOAL), 99)
        along = all(walks.EDGES[a, b] for a, b in itertools.pairwise(walk[:length]))
        expected.append((10 - length) / (10 - walks.SHORTEST[walk[0]]) if along and length <= 10 else 0.0)
    np.testing.assert_allclose(walks.optimality(*arrays("walks", rows, longest=12)), expected, rtol=1e-6)
    assert 30 < sum(x == 1.0 for x in expected) < sum(x > 0.0 for x in expected) < 300


def test_the_graph_is_trlxs_and_the_shortest_walks_are_those_of_all_walks():
    assert walks.EDGES.any(axis=1).sum() == walks.NODES - 1
    reached = {walks.GOAL: 1}
    for nodes in range(2, 11):
        for start in range(walks.NODES):
            if any(walks.EDGES[start, node] and reached.get(node) == nodes - 1 for node in range(walks.NODES)):
                reached.setdefault(start, nodes)
    assert [reached.get(node, 10) for node in range(walks.NODES)] == walks.SHORTEST.tolist()


@pytest.mark.parametrize("name", ["sums", "countdown"])
def test_records_are_right_but_for_the_wrong_ones(name):
    module = MODULES[name]
    for wrong, share in ((0.0, 1.0), (0.6, 0.4), (1.0, 0.0)):
        records = module.completions(300, 1, wrong)
        found = arrays(name, [(r["prompt"].split(), r["completion"].split(), True) for r in records], longest=12)
        assert np.mean(module.is_right(*found)) == pytest.approx(share, abs=0.08 if 0 < wrong < 1 else 0)
        assert [r["prompt"] for r in records] == [r["prompt"] for r in module.completions(300, 1)]
    assert {r["label"] for r in made_by(name, "label", 50)} == {True, False}
    assert all(r["chosen"] != r["rejected"] for r in made_by(name, "preference", 50))


def test_of_two_walks_the_shorter_is_chosen_and_labels_say_what_arrives():
    for record in walks.preferences(100, 0):
        pair = [(record["prompt"].split(), record[x].split(), True) for x in ("chosen", "rejected")]
        chosen, rejected = walks.optimality(*arrays("walks", pair, longest=10))
        assert chosen > rejected
    rows = [(r["prompt"].split(), r["completion"].split(), True) for r in walks.labelled(100, 0)]
    arrived = walks.optimality(*arrays("walks", rows, longest=10)) > 0.0
    assert [r["label"] for r in walks.labelled(100, 0)] == [row[1][-1] == "a" for row in rows]
    assert all(np.asarray(arrived) <= [row[1][-1] == "a" for row in rows])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_tokens_are_those_of_the_tokenizer_and_every_format_packs(name):
    tokenizer, module = alignment.TOKENIZERS.make(name), MODULES[name]
    assert (tokenizer.eos, tokenizer.pad, tokenizer.vocab) == (module.EOS, module.PAD, module.PAD + 1)
    for kind in (TEXTS, COMPLETIONS, PREFERENCES, LABELS, PROMPTS, STEPS):
        if name in languages(kind.format):
            options = {"length": 8} if kind is TEXTS else {}
            data = kind.make(name, examples=300, **options).packed(tokenizer, 32)
            assert kind.describe(data)["name"] == name
            assert made_by(name, kind.format, 20) == made_by(name, kind.format, 20)
    assert languages("text") == CORPORA
