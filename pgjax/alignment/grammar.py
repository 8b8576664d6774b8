"""A language made by code: sentences with number agreement, an exact parser, and a sentiment to be rewarded.

`GRAMMAR` is the one description: "a dog sees two happy cats that sleep ." is a sentence, "a dog see two cat ." is not.
Nothing in it is recursive, so the language is finite and a finite automaton decides it. A state of the automaton is
what a prefix leaves open: a probability for each way to go on, so that sampling, also after a given prefix, walks
through the same states as recognition.

Tokens are the words by their place in `WORDS`, then `EOS`, then `PAD`. Records hold words between single spaces.
"""

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

POSITIVE = ("happy", "kind", "clever", "brave")
NEGATIVE = ("sad", "cruel", "rude", "lazy")
_LEXICON = {
    "determiner_sg": "a the",
    "determiner_pl": "the two",
    "adjective": " ".join((*POSITIVE, *NEGATIVE, "small")),
    "noun_sg": "dog cat bird",
    "noun_pl": "dogs cats birds",
    "intransitive_sg": "sleeps sings",
    "intransitive_pl": "sleep sing",
    "transitive_sg": "sees likes",
    "transitive_pl": "see like",
    "preposition": "near with",
    "adverb": "today often",
}
_AGREEING = {
    "predicate_*": {"intransitive_* ending": 2, "transitive_* phrase ending": 3},
    "phrase_*": {"noun_phrase_*": 5, "noun_phrase_* preposition noun_phrase": 1, "noun_phrase_* that clause_*": 2},
    "clause_*": {"intransitive_*": 1, "transitive_* noun_phrase": 1},
    "noun_phrase_*": {"determiner_* adjectives noun_*": 1},
}
GRAMMAR: dict[str, dict[str, int]] = {
    "sentence": {"phrase_sg predicate_sg": 1, "phrase_pl predicate_pl": 1},
    "ending": {".": 3, "adverb .": 1},
    "phrase": {"phrase_sg": 1, "phrase_pl": 1},
    "noun_phrase": {"noun_phrase_sg": 1, "noun_phrase_pl": 1},
    "adjectives": {"": 1, "adjective": 2, "adjective adjective": 1},
    **{
        name.replace("*", number): {production.replace("*", number): odds for production, odds in choices.items()}
        for name, choices in _AGREEING.items()
        for number in ("sg", "pl")
    },
    **{name: dict.fromkeys(words.split(), 1) for name, words in _LEXICON.items()},
}
"""Symbol -> its productions (symbols between spaces) with their odds. What is not a key is a word."""

WORDS: tuple[str, ...] = tuple(dict.fromkeys([".", "that", *" ".join(_LEXICON.values()).split()]))
"""All words; the token of a word is its place."""
EOS = len(WORDS)
"""The token after a sentence."""
PAD = len(WORDS) + 1
"""The token of slots that hold nothing."""
MAX_WORDS = 23
"""Length of the longest sentence, its "." included."""
MAX_PROMPT_WORDS = 4
"""Length of the longest prompt in the records."""
DEAD = 1
"""The state that no sentence leads to."""
ACCEPTED = 2
"""The state after a sentence and `EOS`."""

_TOKENS = {word: token for token, word in enumerate((*WORDS, "<eos>"))}
_Form: TypeAlias = tuple[str, ...]


def _next_words(form: _Form, probability: Fraction) -> Iterator[tuple[str, _Form, Fraction]]:
    """Each first word that a form derives, the form that it leaves open, and the probability of that derivation."""
    if not form:
        return
    if form[0] not in GRAMMAR:
        yield form[0], form[1:], probability
        return
    choices = GRAMMAR[form[0]]
    for production, odds in choices.items():
        yield from _next_words((*production.split(), *form[1:]), probability * Fraction(odds, sum(choices.values())))


def _automaton() -> tuple[np.ndarray, np.ndarray]:
    """The next state, and the cumulative probability of the next token, by state and token.

    A state is a distribution over forms that may follow, in exact fractions so that equal ones are one state. They are
    numbered as they are met, row by row: the same in every process.
    """
    sentence = ("sentence", "<eos>")
    states: list[tuple[tuple[_Form, Fraction], ...]] = [((sentence, Fraction(1)),), (), (((), Fraction(1)),)]
    index = {state: i for i, state in enumerate(states)}
    transitions, cumulative = [], []
    for state in states:  # which grows
        after: dict[int, dict[_Form, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
        for form, probability in state:
            for word, rest, joint in _next_words(form, probability):
                after[_TOKENS[word]][rest] += joint
        row, probabilities = [DEAD] * (PAD + 1), [Fraction(0)] * (PAD + 1)
        for token, forms in sorted(after.items()):
            probabilities[token] = sum(forms.values(), Fraction(0))
            reached = tuple((form, joint / probabilities[token]) for form, joint in sorted(forms.items()))
            if reached not in index:
                index[reached] = len(states)
                states.append(reached)
            row[token] = index[reached]
        probabilities[PAD] = Fraction(1) - sum(probabilities)  # where no token may follow
        transitions.append(row)
        cumulative.append([float(p) for p in accumulate(probabilities)])
    return np.asarray(transitions, np.int32), np.asarray(cumulative)


TRANSITIONS, _CUMULATIVE = _automaton()
"""The automaton, `[states, len(WORDS) + 2]`: it starts in state 0; all that is not a sentence and `EOS` ends elsewhere
than in `ACCEPTED`. `PAD` is no part of a sentence and leads to `DEAD`."""
_VALENCE = np.asarray([(word in POSITIVE) - (word in NEGATIVE) for word in (*WORDS, "<eos>", "<pad>")], np.float32)


def is_grammatical(
    tokens: Int[Array, "B T"], mask: Shaped[Array, "B T"], prompt: Int[Array, "B P"]
) -> Float[Array, "B"]:
    """1 where the prompt and the tokens that `mask` counts are one sentence and `EOS`, else 0.

    `EOS` is the last counted token. The prompt is padded with `PAD`, which is skipped; a counted `PAD` is an error.
    """
    table = jnp.asarray(TRANSITIONS)
    slots = jnp.concatenate([prompt, tokens], axis=1)
    counted = jnp.concatenate([prompt != PAD, mask != 0], axis=1)

    def read(state: Array, slot: tuple[Array, Array]) -> tuple[Array, None]:
        token, counts = slot
        return jnp.where(counts, table[state, token], state), None

    state, _ = jax.lax.scan(read, jnp.zeros(slots.shape[0], jnp.int32), (slots.T, counted.T))
    return ((state == ACCEPTED) & jnp.any(mask != 0, axis=1)).astype(jnp.float32)


def sentiment(tokens: Int[Array, "B T"], mask: Shaped[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B"]:
    """How many of the tokens that `mask` counts are in `POSITIVE`, minus how many are in `NEGATIVE`.

    The gold reward. It looks at the completion only, not at the prompt, and does not ask for grammar: "happy happy
    happy" earns 3, so a policy that nothing holds back leaves the language.
    """
    return jnp.sum(jnp.where(mask != 0, jnp.asarray(_VALENCE)[tokens], 0.0), axis=1)


def parses(text: str) -> bool:
    """Whether `text` is one sentence, by recursive descent through `GRAMMAR`, without the automaton."""
    words = text.split()
    return len(words) in _ends("sentence", words, 0)


def _ends(symbol: str, words: list[str], start: int) -> set[int]:
    """Where what `symbol` derives from `start` on may end."""
    if symbol not in GRAMMAR:
        return {start + 1} if words[start : start + 1] == [symbol] else set()
    ends = set()
    for production in GRAMMAR[symbol]:
        reached = {start}
        for part in production.split():
            reached = {end for place in reached for end in _ends(part, words, place)}
        ends |= reached
    return ends


def sentences(num: int, seed: int) -> list[str]:
    """`num` sentences drawn from `GRAMMAR`, not necessarily distinct; equal seeds give equal ones."""
    tokens, _ = _sample(np.zeros(num, np.int32), np.random.default_rng(seed))
    return _strings(tokens)


def texts(num: int, seed: int) -> list[dict[str, str]]:
    """Records of one sentence each: `text`."""
    return [{"text": text} for text in sentences(num, seed)]


def prompts(num: int, seed: int) -> list[dict[str, str]]:
    """Records of the beginning of a sentence: `prompt`, as in the `completions` of that seed."""
    return [{"prompt": record["prompt"]} for record in completions(num, seed)]


def completions(num: int, seed: int) -> list[dict[str, str]]:
    """Records of a sentence cut after 1 to `MAX_PROMPT_WORDS` words, before its last one: `prompt`, `completion`."""
    prompt, completion, _ = _cut(num, np.random.default_rng(seed))
    return [{"prompt": p, "completion": c} for p, c in zip(_strings(prompt), _strings(completion), strict=True)]


def preferences(num: int, seed: int) -> list[dict[str, str]]:
    """Records of two different ways to end a sentence: `prompt`, `chosen`, `rejected`.

    Both are drawn from `GRAMMAR` given the prompt, and P(a is chosen over b) = sigmoid(sentiment(a) - sentiment(b))
    (Bradley & Terry, 1952). A prompt whose two draws are equal is drawn again, so those with one ending never occur.
    """
    rng = np.random.default_rng(seed)
    records: list[dict[str, str]] = []
    while len(records) < num:
        prompt, first, state = _cut(num - len(records), rng)
        second, _ = _sample(state, rng)
        gap = _VALENCE[first].sum(axis=1) - _VALENCE[second].sum(axis=1)
        swap = rng.random(len(gap)) >= _sigmoid(gap)
        rows = zip(swap, _strings(prompt), _strings(first), _strings(second), strict=True)
        for swapped, start, a, b in rows:
            if a != b:
                records.append({"prompt": start, "chosen": b if swapped else a, "rejected": a if swapped else b})
    return records


def labelled(num: int, seed: int) -> list[dict[str, str | bool]]:
    """Records of one ending and whether it is liked: `prompt`, `completion`, `label`, with P(label) =
    sigmoid(sentiment(completion))."""
    rng = np.random.default_rng(seed)
    prompt, completion, _ = _cut(num, rng)
    label = rng.random(num) < _sigmoid(_VALENCE[completion].sum(axis=1))
    rows = zip(_strings(prompt), _strings(completion), label.tolist(), strict=True)
    return [{"prompt": p, "completion": c, "label": liked} for p, c, liked in rows]


def _sample(state: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that lead from each state to `ACCEPTED`, then `PAD`, and the state before each of them."""
    tokens, path = [], []
    for _ in range(MAX_WORDS + 1):
        path.append(state)
        tokens.append(np.argmax(rng.random((len(state), 1)) < _CUMULATIVE[state], axis=1))
        state = TRANSITIONS[state, tokens[-1]]
    return np.stack(tokens, axis=1), np.stack(path, axis=1)


def _cut(num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens before and after the cut of `num` sentences, the others as `PAD`, and the state at the cut."""
    tokens, path = _sample(np.zeros(num, np.int32), rng)
    length = np.sum(tokens < EOS, axis=1)
    cut = rng.integers(1, np.minimum(length, MAX_PROMPT_WORDS + 1))
    before = np.arange(tokens.shape[1]) < cut[:, None]
    return np.where(before, tokens, PAD), np.where(before, PAD, tokens), path[np.arange(num), cut]


def _strings(tokens: np.ndarray) -> list[str]:
    return [" ".join([WORDS[token] for token in row if token < EOS]) for row in tokens.tolist()]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
