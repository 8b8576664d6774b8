"""A written constitution for answers in the grammar, whose rules code can check: a built-in language for AI feedback.

Its words are those of `grammar` and a few more: `|` and `?` stand between the texts that a judge or a critic reads, `A`
and `B` are verdicts, the names of `RULES` and `fine` make a critique. Read `RULES`, `judgements` and `revisions` (what
a judge and a critic learn from), then `kept` (the reward). Token 40 ends a text, token 41 is padding.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pgjax.alignment import grammar

LONGEST = 9
"""Words of a sentence that is not long."""
RULES = {
    "unkind": "Say nothing unkind: no word of an answer is sad, cruel, rude or lazy.",
    "long": f"Be brief: a sentence, its beginning included, has at most {LONGEST} words.",
    "broken": "Speak well: prompt and answer are one sentence of the grammar.",
}
"""What a critique calls a rule that is broken -> the rule."""
FINE = "fine"
"""The critique of an answer that keeps all."""
WORDS = (*grammar.WORDS, "|", "?", "A", "B", *RULES, FINE)
EOS, PAD = len(WORDS), len(WORDS) + 1
_UNKIND = np.asarray([word in grammar.NEGATIVE for word in (*WORDS, "<eos>", "<pad>")])
_KINDER = dict(zip(grammar.NEGATIVE, grammar.POSITIVE, strict=True))


def kept(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Float[Array, "B"]:
    """The share of the three rules that an answer keeps."""
    return jnp.mean(rules_kept(tokens, mask, prompt), axis=1, dtype=jnp.float32)


def rules_kept(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], prompt: Int[Array, "B P"]) -> Bool[Array, "B 3"]:
    """Which of `RULES` each answer keeps, in their order."""
    unkind = jnp.any(jnp.asarray(_UNKIND)[tokens] & mask, axis=1)
    words = jnp.sum(prompt < EOS, axis=1) + jnp.sum((tokens < EOS) & mask, axis=1)
    translated = (_of_grammar(tokens), mask, _of_grammar(prompt))
    return jnp.stack([~unkind, words <= LONGEST, grammar.is_grammatical(*translated) > 0.5], axis=1)


def _of_grammar(tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The same text in the tokens of `grammar`; words that it does not have are padding within a text, an error."""
    return jnp.where(tokens < grammar.EOS, tokens, jnp.where(tokens == EOS, grammar.EOS, grammar.PAD))


def faults(prompt: str, answer: str) -> list[str]:
    """The names of the rules that an answer breaks."""
    words = answer.split()
    broken = {
        "unkind": any(word in grammar.NEGATIVE for word in words),
        "long": len(prompt.split()) + len(words) > LONGEST,
        "broken": not grammar.parses(f"{prompt} {answer}"),
    }
    return [name for name in RULES if broken[name]]


def completions(num: int, seed: int) -> list[dict[str, str]]:
    """Those of the grammar, which keeps the last rule alone."""
    return grammar.completions(num, seed)


def texts(num: int, seed: int) -> list[dict[str, str]]:
    """Those of the grammar."""
    return grammar.texts(num, seed)


def preferences(num: int, seed: int) -> list[dict[str, str]]:
    """Records of two answers, of which the chosen one breaks fewer rules: `prompt`, `chosen`, `rejected`."""
    return [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt, chosen, rejected in _pairs(num, np.random.default_rng([seed, 0]))
    ]


def labelled(num: int, seed: int) -> list[dict[str, str | bool]]:
    """Records of an answer and whether it keeps all rules: `prompt`, `completion`, `label`."""
    return [
        {"prompt": prompt, "completion": answer, "label": not faults(prompt, answer)}
        for prompt, answer in _answers(num, np.random.default_rng([seed, 1]))
    ]


def judgements(num: int, seed: int) -> list[dict[str, str]]:
    """Records of a question to a judge and its verdict, A or B, for the answer that breaks fewer rules: `prompt`,
    `completion`. In half of them it is the first."""
    rng = np.random.default_rng([seed, 2])
    records: list[dict[str, str]] = []
    for prompt, better, worse in _pairs(num, rng):
        first = rng.random() < 0.5
        a, b = (better, worse) if first else (worse, better)
        records.append({"prompt": f"{prompt} | {a} | {b} ?", "completion": "A" if first else "B"})
    return records


def revisions(num: int, seed: int) -> list[dict[str, str]]:
    """Records of an answer, what is wrong with it, and a better one: `prompt`, `completion`.

    The critique names the rules that are broken, or says `FINE`. The better answer has kind words for unkind ones, and
    is another one of the grammar where that is not enough.
    """
    rng = np.random.default_rng([seed, 3])
    answers = _answers(num, rng)
    kind: dict[str, list[str]] = {}
    for record in grammar.completions(40 * num, int(rng.integers(2**31))):
        if len(record["prompt"].split()) + len(record["completion"].split()) <= LONGEST:
            kind.setdefault(record["prompt"], []).append(_kinder(record["completion"]))
    records: list[dict[str, str]] = []
    for prompt, answer in answers:
        found = faults(prompt, answer)
        revision = _kinder(answer)
        if faults(prompt, revision):
            if prompt not in kind:
                continue
            revision = kind[prompt][rng.integers(len(kind[prompt]))]
        critique = " ".join(found) or FINE
        records.append({"prompt": f"{prompt} | {answer} |", "completion": f"{critique} | {revision}"})
    return records


def _kinder(answer: str) -> str:
    return " ".join(_KINDER.get(word, word) for word in answer.split())


def _answers(num: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Prompts and answers, a third of them no sentences: a word is another one, or comes twice, or is missing."""
    rows = []
    for record in grammar.completions(num, int(rng.integers(2**31))):
        words = record["completion"].split()
        if rng.random() < 1 / 3:
            place = rng.integers(len(words))
            other = [[], [words[place]] * 2, [str(rng.choice(grammar.WORDS))]][rng.integers(3)]
            words = [*words[:place], *other, *words[place + 1 :]] or words
        rows.append((record["prompt"], " ".join(words)))
    return rows


def _pairs(num: int, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Prompts with two answers, of which the first breaks fewer rules."""
    found: list[tuple[str, str, str]] = []
    while len(found) < num:
        answers: dict[str, str] = {}
        for prompt, answer in _answers(4 * num, rng):
            other = answers.pop(prompt, None)
            if other is None:
                answers[prompt] = answer
                continue
            gap = len(faults(prompt, other)) - len(faults(prompt, answer))
            if gap:
                found.append((prompt, answer, other) if gap > 0 else (prompt, other, answer))
    return found[:num]
