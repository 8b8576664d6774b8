"""The language made by code: its automaton against its productions and its parser, its reward, its records."""

import functools
import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from pgjax.alignment import grammar
from pgjax.alignment.grammar import ACCEPTED, DEAD, EOS, GRAMMAR, MAX_WORDS, NEGATIVE, PAD, POSITIVE, TRANSITIONS, WORDS

T, P = 28, 8
NUM = 3000
SENTENCE = "a dog sees two happy cats that sleep ."


def lexical(word):
    """The symbols that are rewritten as this word alone; words with the same ones are interchangeable."""
    return frozenset(symbol for symbol, productions in GRAMMAR.items() if word in productions)


FIRST_OF = {word: next(first for first in WORDS if lexical(first) == lexical(word)) for word in WORDS}
FIRSTS = sorted(set(FIRST_OF.values()), key=WORDS.index)


@functools.cache
def language(symbol):
    """All that `symbol` derives, with its probability; each word as the first of its kind."""
    if symbol not in GRAMMAR:
        return {(FIRST_OF[symbol],): 1.0}
    derived = Counter()
    for production, odds in GRAMMAR[symbol].items():
        for parts in itertools.product(*(language(part).items() for part in production.split())):
            probability = odds / sum(GRAMMAR[symbol].values())
            for _, factor in parts:
                probability *= factor
            derived[tuple(itertools.chain.from_iterable(words for words, _ in parts))] += probability
    return derived


def encode(texts, cuts):
    """Each text and `EOS` as (tokens, mask, prompt), the prompt being its first words; words where nothing counts."""
    tokens, prompt = np.full((len(texts), T), 5, np.int32), np.full((len(texts), P), PAD, np.int32)
    mask = np.zeros((len(texts), T), bool)
    for b, (text, cut) in enumerate(zip(texts, cuts, strict=True)):
        ids = [WORDS.index(word) for word in text.split()]
        prompt[b, P - len(ids[:cut]) :] = ids[:cut]
        rest = [*ids[cut:], EOS]
        tokens[b, : len(rest)], mask[b, : len(rest)] = rest, True
    return tokens, mask, prompt


is_grammatical = jax.jit(grammar.is_grammatical)


def test_the_automaton_accepts_what_the_productions_derive_and_nothing_else():
    """All sentences, up to the choice among interchangeable words, are accepted, and there are as many as accepted."""
    for word, first in FIRST_OF.items():
        np.testing.assert_array_equal(TRANSITIONS[:, WORDS.index(word)], TRANSITIONS[:, WORDS.index(first)])
    derived = list(language("sentence"))
    ids = np.full((len(derived), MAX_WORDS + 1), PAD)
    for b, words in enumerate(derived):
        ids[b, : len(words) + 1] = [*map(WORDS.index, words), EOS]
    state = np.zeros(len(derived), np.int32)
    for column in ids.T:
        state = np.where(column == PAD, state, TRANSITIONS[state, column])
    assert (state == ACCEPTED).all()

    paths = np.zeros(len(TRANSITIONS), int)
    paths[0], accepted = 1, 0
    while paths.any():
        accepted += paths[TRANSITIONS[:, EOS] == ACCEPTED].sum()
        following = np.zeros_like(paths)
        for word in FIRSTS:
            np.add.at(following, TRANSITIONS[:, WORDS.index(word)], paths)
        following[DEAD] = 0
        paths = following
    assert accepted == len(derived) > 100_000


def test_sizes():
    assert len(set(WORDS)) == len(WORDS) == 32
    assert TRANSITIONS.shape[1] == len(WORDS) + 2
    assert TRANSITIONS.dtype == np.int32
    assert (EOS, PAD) == (32, 33)
    met = [state for state in dict.fromkeys(TRANSITIONS.ravel().tolist()) if state not in (DEAD, ACCEPTED)]
    assert met == [*range(3, len(TRANSITIONS))], "numbered as they are met, not by hashes that differ between processes"
    assert max(map(len, language("sentence"))) == MAX_WORDS
    typical = sum(p for words, p in language("sentence").items() if 4 <= len(words) <= 16)
    assert typical > 0.95
    assert not any(word[0] in "aeiou" for word in (*POSITIVE, *NEGATIVE)), "they follow 'a'"


def test_sentences_come_with_the_probabilities_of_the_productions():
    kinds = Counter(tuple(map(FIRST_OF.get, s.split())) for s in grammar.sentences(20_000, 1))
    assert kinds.keys() <= language("sentence").keys()
    assert sum(language("sentence").values()) == pytest.approx(1.0)
    for words, p in Counter(language("sentence")).most_common(30):
        assert kinds[words] / 20_000 == pytest.approx(p, abs=4.5 * np.sqrt(p / 20_000)), words


def mutated(rng, sentence, kind):
    """One change of one or two words."""
    words = sentence.split()
    i, j = rng.integers(len(words), size=2)
    if kind == "swapped":
        words[i], words[j] = words[j], words[i]
    elif kind == "deleted":
        del words[i]
    elif kind == "inserted":
        words.insert(i, WORDS[rng.integers(len(WORDS))])
    elif kind == "replaced":
        words[i] = WORDS[rng.integers(len(WORDS))]
    elif kind == "verb disagrees":
        verbs = [k for k, word in enumerate(words) if any("transitive" in symbol for symbol in lexical(word))]
        k = verbs[rng.integers(len(verbs))]
        words[k] = words[k] + "s" if words[k] + "s" in WORDS else words[k][:-1]
    elif kind == "random":
        words = [WORDS[k] for k in rng.integers(len(WORDS), size=rng.integers(7))]
    elif kind == "twice":
        words = (words + words)[: T - 1]
    return " ".join(words)


def test_parser_and_automaton_agree():
    rng = np.random.default_rng(0)
    kinds = ["as it is", "swapped", "deleted", "inserted", "replaced", "verb disagrees", "random", "twice"]
    texts = [mutated(rng, s, kinds[i % len(kinds)]) for i, s in enumerate(grammar.sentences(NUM, 0))]
    parsed = np.array([grammar.parses(text) for text in texts])
    np.testing.assert_array_equal(is_grammatical(*encode(texts, rng.integers(P + 1, size=NUM))), parsed)
    for k, kind in enumerate(kinds):
        rate = parsed[k :: len(kinds)].mean()
        if kind in ("as it is", "verb disagrees", "twice"):
            assert rate == (kind == "as it is"), kind
        else:
            assert rate < 0.5, kind
    assert parsed.mean() > 0.15


def test_what_counts_is_one_sentence_and_its_end():
    sentence = [WORDS.index(word) for word in SENTENCE.split()]
    cases = [
        (1, [], [*sentence, EOS]),
        (1, sentence[:4], [*sentence[4:], EOS]),
        (1, sentence, [EOS]),
        (0, [], sentence),
        (0, [], [*sentence, EOS, EOS]),
        (0, [], [*sentence, EOS, sentence[0]]),
        (0, [], [*sentence[:-1], EOS]),
        (0, [], [PAD, *sentence, EOS]),
        (0, [], [*sentence, EOS, PAD]),
        (0, [], [*sentence, EOS + 10]),
        (0, [*sentence, EOS], []),
        (0, [], []),
    ]
    tokens, mask = np.full((len(cases), T), EOS, np.int32), np.zeros((len(cases), T), np.float32)
    prompt = np.full((len(cases), 12), PAD, np.int32)
    for b, (_, before, counted) in enumerate(cases):
        prompt[b, 12 - len(before) :] = before
        tokens[b, : len(counted)], mask[b, : len(counted)] = counted, 1
    accepted = is_grammatical(tokens, mask, prompt)
    assert accepted.dtype == np.float32
    np.testing.assert_array_equal(accepted, [case[0] for case in cases])


def valence(text):
    words = text.split()
    return sum(word in POSITIVE for word in words) - sum(word in NEGATIVE for word in words)


def test_sentiment_counts_adjectives_of_the_completion():
    records = grammar.completions(200, 3)
    texts = [r["prompt"] + " " + r["completion"] for r in records]
    encoded = encode(texts, [len(r["prompt"].split()) for r in records])
    expected = [valence(r["completion"]) for r in records]
    np.testing.assert_array_equal(jax.jit(grammar.sentiment)(*encoded), expected)
    assert min(expected) <= -2
    assert max(expected) >= 2
    assert expected != [valence(text) for text in texts], "some adjectives are in the prompts"


@pytest.mark.parametrize("make", [grammar.texts, grammar.prompts, grammar.completions, grammar.preferences])
def test_records_depend_on_their_seed_alone(make):
    assert make(20, 5) == make(20, 5)
    assert make(20, 5) != make(20, 6)
    assert len(make(20, 5)) == 20
    assert make(0, 5) == []


def test_completions_end_sentences():
    records = grammar.completions(300, 7)
    assert all(grammar.parses(f"{r['prompt']} {r['completion']}") for r in records)
    assert all(r["completion"] and r == {k: " ".join(v.split()) for k, v in r.items()} for r in records)
    assert {len(r["prompt"].split()) for r in records} == {1, 2, 3, 4}
    assert grammar.prompts(300, 7) == [{"prompt": r["prompt"]} for r in records]
    assert all(grammar.parses(r["text"]) for r in grammar.texts(100, 7))


def logistic(x):
    return 1 / (1 + np.exp(-x))


def close(events, expected):
    """Whether a sum of independent events is what it should be, within 4.5 standard deviations."""
    return abs(np.sum(events) - np.sum(expected)) < 4.5 * np.sqrt(np.sum(expected * (1 - expected)))


def test_preferences_are_drawn_from_the_language_and_bradley_terry():
    records = grammar.preferences(8000, 8)
    assert all(r["chosen"] != r["rejected"] for r in records)
    assert all(grammar.parses(f"{r['prompt']} {r[end]}") for r in records[:300] for end in ("chosen", "rejected"))
    gap = np.array([valence(r["chosen"]) - valence(r["rejected"]) for r in records])
    for size in (1, 2, 3):
        won = gap[np.abs(gap) == size] > 0
        assert close(won, np.full(len(won), logistic(size))), size

    lengths = np.array([[len(r[end].split()) for end in ("chosen", "rejected")] for r in records if r["prompt"] == "a"])
    expected = [len(r["completion"].split()) for r in grammar.completions(8000, 9) if r["prompt"] == "a"]
    assert lengths.mean() == pytest.approx(np.mean(expected), abs=4.5 * np.std(expected) / np.sqrt(len(expected)))
    assert abs(np.corrcoef(lengths.T)[0, 1]) < 4.5 / np.sqrt(len(lengths)), "neither end knows the other"


def test_labels_follow_the_sentiment():
    records = grammar.labelled(8000, 10)
    assert records == grammar.labelled(8000, 10)
    unlabelled = [{"prompt": r["prompt"], "completion": r["completion"]} for r in records]
    assert unlabelled == grammar.completions(8000, 10)
    score = np.array([valence(r["completion"]) for r in records])
    label = np.array([r["label"] for r in records])
    assert label.dtype == bool
    for value in range(-2, 3):
        at = score == value
        assert close(label[at], np.full(at.sum(), logistic(value))), value
