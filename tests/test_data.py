"""From lines of text to arrays: exact against slow loops, nothing lost in silence, and what is held out stays so."""

import dataclasses
import json
import random
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import InputError
from pgjax.alignment.data import COMPLETIONS, LABELS, PREFERENCES, PROMPTS, TEXTS, Data, epoch_rows
from pgjax.alignment.tokenizers import Bytes, Words
from pgjax.commands.flags import field_flags

KINDS = {kind.format: kind for kind in (TEXTS, COMPLETIONS, PREFERENCES, LABELS, PROMPTS)}
COLUMNS = {
    "completion": ["prompt", "completion"],
    "preference": ["prompt", "chosen", "rejected", "margin"],
    "label": ["prompt", "completion", "label"],
    "prompt": ["prompt"],
}
TOKENIZER, CONTEXT = Bytes(), 1000
EOS, PAD = TOKENIZER.eos, TOKENIZER.pad


def written(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def some_rows(format, num, seed=0):
    """Random lines of a format, many prompts twice, some empty, with a key too many."""
    draw = random.Random(seed)

    def text(least):
        return "".join(draw.choices("ab é", k=draw.randint(least, 9)))

    rows = []
    for i in range(num):
        fields = {"prompt": text(0), "completion": text(1), "chosen": text(1) + "+", "rejected": text(1) + "-"}
        fields |= {"label": draw.random() < 0.5, "text": text(1)}
        rows.append({name: fields[name] for name in COLUMNS.get(format, ["text"]) if name != "margin"} | {"id": i})
        if format == "preference" and i % 2:
            rows[-1]["margin"] = draw.choice([1, -0.5])
    return rows


def loops(rows, format, max_prompt, max_completion, context, too_long):
    """The rows that stay, one token at a time, without padding, and how many are too long."""
    kept, count = [], 0
    for row in rows:
        prompt = list(row["prompt"].encode()) or [EOS]
        names = [name for name in COLUMNS[format][1:] if isinstance(row.get(name), str)]
        answers = [[*row[name].encode(), EOS] for name in names]
        before = json.dumps([prompt, answers])
        while len(prompt) > max_prompt:
            prompt.pop(0)
        for answer in answers:
            while len(answer) > max_completion:
                answer.pop()
        while len(prompt) > 1 and len(prompt) + max(map(len, answers), default=0) > context:
            prompt.pop(0)
        for answer in answers:
            while len(prompt) + len(answer) > context:
                answer.pop()
        count += before != json.dumps([prompt, answers])
        if too_long == "cut" or before == json.dumps([prompt, answers]):
            kept.append((row, prompt, answers))
    return kept, count


def assert_same(arrays, kept, format):
    """Every array, its padding included, from one row after the other."""
    widest = max(len(prompt) for _, prompt, _ in kept)
    expected = {"prompt": [[PAD] * (widest - len(prompt)) + prompt for _, prompt, _ in kept]}
    expected["prompt_mask"] = [[False] * (widest - len(prompt)) + [True] * len(prompt) for _, prompt, _ in kept]
    widest = max((len(answer) for _, _, answers in kept for answer in answers), default=0)
    for i, name in enumerate(name for name in COLUMNS[format][1:] if name not in ("margin", "label")):
        texts = [answers[i] for _, _, answers in kept]
        expected[name] = [ids + [PAD] * (widest - len(ids)) for ids in texts]
        expected[f"{name}_mask"] = [[True] * len(ids) + [False] * (widest - len(ids)) for ids in texts]
    if format == "preference":
        expected["margin"] = [row.get("margin", 0.0) for row, _, _ in kept]
    if format == "label":
        expected["label"] = [row["label"] for row, _, _ in kept]
    assert {name: column.tolist() for name, column in arrays._asdict().items()} == expected
    dtypes = {name: jnp.bool_ if name.endswith("mask") or name == "label" else jnp.int32 for name in expected}
    dtypes |= {"margin": jnp.float32} if format == "preference" else {}
    assert {name: column.dtype for name, column in arrays._asdict().items()} == dtypes
    assert all(isinstance(column, jax.Array) for column in arrays)


@pytest.mark.parametrize("format", list(COLUMNS))
@pytest.mark.parametrize("too_long", ["drop", "cut"])
@pytest.mark.parametrize(("max_prompt", "max_completion", "context"), [(64, 64, 99), (6, 7, 99), (8, 9, 11), (9, 9, 2)])
def test_arrays_are_those_of_loops(format, too_long, max_prompt, max_completion, context, tmp_path):
    rows = some_rows(format, 60)
    options = {"held_out": 0, "max_prompt": max_prompt, "too_long": too_long}
    options |= {} if format == "prompt" else {"max_completion": max_completion}
    data = KINDS[format].make(written(tmp_path / "rows.jsonl", rows), **options)
    kept, count = loops(rows, format, max_prompt, max_completion, context, too_long)
    assert count == 0 or context < 99 or max_prompt == 6
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not kept:
            with pytest.raises(InputError, match=r"leaves nothing to train on \(60 of 60"):
                data.packed(TOKENIZER, context)
            return
        packed = data.packed(TOKENIZER, context)
    assert packed.held_out is None
    assert_same(packed.train, kept, format)
    assert [str(warning.message).split(": ")[1].split(" of ")[0] for warning in said] == [str(count)] * bool(count)


def test_what_is_dropped_or_cut_is_counted_out_loud(tmp_path):
    rows = [{"prompt": "p" * n, "chosen": "a", "rejected": "b"} for n in range(1200)]
    path = written(tmp_path / "prefs.jsonl", rows)
    for too_long, done, left in (("drop", "dropped", 65), ("cut", "cut", 1200)):
        data = PREFERENCES.make(path, held_out=0, too_long=too_long)
        with pytest.warns(UserWarning) as said:
            assert len(data.packed(TOKENIZER, CONTEXT).train.prompt) == left
        assert [str(warning.message) for warning in said] == [
            f"{path}: 1,135 of 1,200 pairs are longer than max_prompt = 64 or max_completion = 64 tokens, or than "
            f"context = 1000 in all, and were {done}"
        ]
        assert said[0].filename == __file__


def test_texts_end_with_eos_unless_they_are_cut(tmp_path):
    rows = [{"prompt": "", "completion": "a" * n} for n in (1, 3, 4, 9)]
    data = COMPLETIONS.make(written(tmp_path / "rows.jsonl", rows), held_out=0, max_completion=4, too_long="cut")
    with pytest.warns(UserWarning, match="2 of 4 examples"):
        train = data.packed(TOKENIZER, CONTEXT).train
    assert train.prompt.tolist() == [[EOS]] * 4
    assert train.prompt_mask.all()
    assert train.completion.tolist() == [[97, EOS, PAD, PAD], [97, 97, 97, EOS], [97] * 4, [97] * 4]
    assert train.completion_mask.sum(axis=1).tolist() == [2, 4, 4, 4]


def test_token_ids_are_taken_as_they_are(tmp_path):
    rows = [{"prompt": [0, 257], "completion": [1, 2]}, {"prompt": "a", "completion": "b"}]
    train = COMPLETIONS.make(written(tmp_path / "rows.jsonl", rows), held_out=0).packed(TOKENIZER, CONTEXT).train
    assert train.prompt.tolist() == [[0, 257], [PAD, 97]]
    assert train.prompt_mask.tolist() == [[True, True], [False, True]]
    assert train.completion.tolist() == [[1, 2, EOS], [98, EOS, PAD]]


def test_running_text_is_joined_and_cut_into_rows(tmp_path):
    rows = some_rows("text", 30)
    joined = [i for row in rows for i in [*row["text"].encode(), EOS]]
    data = TEXTS.make(written(tmp_path / "rows.jsonl", rows), held_out=0, length=7)
    rest = len(joined) % 7
    assert rest
    tokens = data.packed(TOKENIZER, CONTEXT).train.tokens
    assert tokens.shape == (len(joined) // 7, 7)
    assert tokens.ravel().tolist() == joined[:-rest]
    packed = TEXTS.make(data.source.name, held_out=0.4, length=2).packed(TOKENIZER, CONTEXT)
    documents = [{*split_at_eos(side.tokens.ravel().tolist())} for side in (packed.train, packed.held_out)]
    assert all(documents)
    assert documents[0] | documents[1] <= {row["text"] for row in rows}
    assert not documents[0] & documents[1]


def split_at_eos(ids):
    """The documents that are complete."""
    ends = [i for i, token in enumerate(ids) if token == EOS]
    return [TOKENIZER.decode(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def test_of_a_single_document_the_end_is_held_out(tmp_path):
    (tmp_path / "book.txt").write_text("0123456789\n\nabcdefg")
    data = TEXTS.make(str(tmp_path / "book.txt"), held_out=0.25, length=5).packed(TOKENIZER, 5)
    whole = [*b"0123456789\n\nabcdefg", EOS]
    assert data.train.tokens.ravel().tolist() == whole[:15]
    assert data.held_out.tokens.tolist() == [whole[15:]]
    with pytest.raises(InputError, match="length = 5 is not accepted: expected at most the model's context, 4"):
        TEXTS.make(str(tmp_path / "book.txt"), length=5).packed(TOKENIZER, 4)


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    files = {"b.jsonl": '{"text": "two"}\n\n{"text": "three"}', "c.txt": "four", "a.jsonl": '{"text": "one"}'}
    for name, text in (files | {"README.md": "not data"}).items():
        (tmp_path / name).write_text(text)
    data = TEXTS.make(str(tmp_path), held_out=0, length=2)
    assert [record.values["text"] for record in data.source.records] == ["one", "two", "three", "four"]
    assert [record.where[len(str(tmp_path)) + 1 :] for record in data.source.records] == [
        *("a.jsonl, line 1", "b.jsonl, line 1", "b.jsonl, line 3", "c.txt")
    ]
    (tmp_path / "c.txt").rename(tmp_path / "0.txt")
    assert TEXTS.make(str(tmp_path)).source.sha256 != data.source.sha256


def by_prompt(arrays):
    """The prompt of each row as text, and the row."""
    rows = zip(*(column.tolist() for column in arrays), strict=True)
    return [(TOKENIZER.decode(row[0]), str(row)) for row in rows]


@pytest.mark.parametrize("format", list(COLUMNS))
def test_what_is_held_out_never_trains(format, tmp_path):
    rows = some_rows(format, 400)
    path = written(tmp_path / "rows.jsonl", rows)
    packed = KINDS[format].make(path, held_out=0.3).packed(TOKENIZER, CONTEXT)
    train, held_out = map(by_prompt, (packed.train, packed.held_out))
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in held_out}
    together = by_prompt(KINDS[format].make(path, held_out=0).packed(TOKENIZER, CONTEXT).train)
    assert sorted(train + held_out) == sorted(together)
    assert [row for row in together if row in set(train)] == train, "the order of the file"
    assert 0.2 < len({*held_out}) / len({*together}) < 0.4


def test_a_prompt_is_held_out_in_every_file_or_in_none(tmp_path):
    rows = some_rows("preference", 200)

    def prompts(kind, name, rows, **options):
        data = kind.make(written(tmp_path / name, rows), **options).packed(TOKENIZER, CONTEXT)
        return [{prompt for prompt, _ in by_prompt(side)} for side in (data.train, data.held_out)]

    train, held_out = prompts(PREFERENCES, "pairs.jsonl", rows)
    assert prompts(PROMPTS, "prompts.jsonl", rows[::-1]) == [train, held_out]
    more = some_rows("preference", 300, seed=1)
    longer = prompts(PREFERENCES, "more.jsonl", more[:150] + rows + more[150:])
    assert train < longer[0]
    assert held_out < longer[1]
    larger = prompts(PREFERENCES, "pairs.jsonl", rows, held_out=0.5)
    assert held_out < larger[1]


def test_a_side_without_examples_is_refused(tmp_path):
    path = written(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    with pytest.raises(InputError, match=r"held_out = 0.01 leaves no held-out example: expected more .* or held_out=0"):
        COMPLETIONS.make(path, held_out=0.01).packed(TOKENIZER, CONTEXT)
    with pytest.raises(InputError, match=r"rows.jsonl leaves nothing to train on"):
        COMPLETIONS.make(path, held_out=0.999).packed(TOKENIZER, CONTEXT)
    with pytest.raises(InputError, match="context = 1 is not accepted"):
        COMPLETIONS.make(path).packed(TOKENIZER, 1)
    (tmp_path / "book.txt").write_text("a short one")
    with pytest.raises(InputError, match=r"leaves nothing to train on .*12 of 12 tokens do not fill"):
        TEXTS.make(str(tmp_path / "book.txt")).packed(TOKENIZER, CONTEXT)


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
BROKEN = [
    ("text", '{"text": "a"', "is not JSON"),
    ("text", b'{"text": "\xff"}', "is not JSON"),
    ("text", "[1]", r"\[1\] is no JSON object"),
    ("text", {"txt": "a"}, "'text' is missing"),
    ("text", {"text": None}, "'text' is None, neither a text nor a list of token ids"),
    ("text", {"text": ""}, "'text' is empty"),
    ("text", r'{"text": "\ud800"}', "'text' is .*, neither a text"),
    ("completion", {"prompt": "p"}, "'completion' is missing"),
    ("completion", {"prompt": "p", "completion": []}, "'completion' is empty"),
    ("completion", {"prompt": [True], "completion": "a"}, "'prompt' is .True., neither"),
    ("completion", {"prompt": [1.0], "completion": "a"}, "'prompt' is .1.0., neither"),
    ("completion", {"prompt": [0.5] * 9999, "completion": "a"}, "'prompt' is .{,40}, neither"),
    ("preference", PAIR | {"rejected": "a"}, "'chosen' and 'rejected' are equal"),
    ("preference", PAIR | {"margin": True}, "'margin' is True and no finite number"),
    ("preference", PAIR | {"margin": "1"}, "'margin' is '1' and no finite number"),
    ("preference", PAIR | {"margin": float("nan")}, "'margin' is nan and no finite number"),
    ("preference", PAIR | {"margin": 10**400}, "'margin' is 1.* and no finite number"),
    ("label", {"prompt": "p", "completion": "a"}, "'label' is missing"),
    ("label", {"prompt": "p", "completion": "a", "label": 1}, "'label' is 1; expected .* true or false"),
    ("prompt", {"prompt": 3}, "'prompt' is 3, neither"),
]


@pytest.mark.parametrize(("format", "line", "problem"), BROKEN)
def test_a_broken_line_is_named(format, line, problem, tmp_path):
    good = json.dumps(some_rows(format, 1)[0]).encode()
    broken = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([good, b"  ", broken, good]))
    with pytest.raises(InputError, match=rf"rows.jsonl, line 3:? {problem}") as refused:
        KINDS[format].make(str(tmp_path / "rows.jsonl"))
    assert "expected {" in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("format", list(KINDS))
def test_files_with_nothing_to_read_are_refused(format, tmp_path):
    make = KINDS[format].make
    (tmp_path / "rows.jsonl").write_text(" \n")
    with pytest.raises(InputError, match=r"rows.jsonl is empty: expected {"):
        make(str(tmp_path / "rows.jsonl"))
    (tmp_path / "folder").mkdir()
    for name in (tmp_path / "folder", tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match=f"data = '{name}' is not known: expected (grammar, addition, )?sums"):
            make(str(name))


def test_text_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "book.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"book.txt is not UTF-8"):
        TEXTS.make(str(tmp_path / "book.txt"))


def test_tokens_that_the_tokenizer_does_not_have_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = {"prompt": [0], "completion": "cat"}
    for broken, problem in [
        ({"prompt": [4], "completion": "cat"}, r"line 2: 'prompt' has the id 4: expected ids in \[0, 4\)"),
        ({"prompt": [], "completion": [-1]}, "line 2: 'completion' has the id -1"),
        ({"prompt": "", "completion": "a dog"}, "line 2: the word 'dog' is not in the vocabulary"),
        ({"prompt": "", "completion": "  "}, "line 2: 'completion' has no tokens"),
    ]:
        data = COMPLETIONS.make(written(path, [good, broken]), held_out=0)
        with pytest.raises(InputError, match=problem):
            data.packed(Words(("a", "cat")), CONTEXT)


@pytest.mark.parametrize("format", list(KINDS))
def test_records_in_code_are_those_of_a_file_without_a_path(format, tmp_path):
    kind, rows = KINDS[format], some_rows(format, 60)
    data = kind.of(iter(rows), held_out=0.3)
    options = {"length": 4} if format == "text" else {}
    ours = kind.with_options(data, **options).packed(TOKENIZER, CONTEXT)
    file = kind.make(written(tmp_path / "rows.jsonl", rows), held_out=0.3, **options).packed(TOKENIZER, CONTEXT)
    chex.assert_trees_all_equal((ours.train, ours.held_out), (file.train, file.held_out))
    assert kind.describe(data) is None
    assert kind.of([row | {"id": print} for row in rows], held_out=0.3) == data
    assert kind.of(rows[1:], held_out=0.3) != data
    with pytest.raises(InputError, match=r"records in code: there are none; expected at least one {"):
        kind.of([])
    with pytest.raises(InputError, match=r"records in code, record 2: .* is missing; expected {"):
        kind.of([rows[0], {}])


@pytest.mark.parametrize("format", list(KINDS))
def test_data_is_a_part_described_by_path_and_digest(format, tmp_path):
    kind = KINDS[format]
    path = written(tmp_path / "rows.jsonl", some_rows(format, 50))
    data = kind.make(path, held_out=0.5)
    described = json.loads(json.dumps(kind.describe(data)))
    assert described["name"] == path
    assert described["options"].keys() == {"sha256", *kind.options(data)}
    assert not any(kind.options(data).values())
    again = kind.make(path, **described["options"])
    assert again == data
    assert hash(again) == hash(data)
    assert kind.describe(kind.with_options(data, held_out=0.2))["options"]["held_out"] == 0.2
    assert kind.describe(object()) is None
    assert all(other.describe(data) is None for other in KINDS.values() if other is not kind)
    with pytest.raises(InputError, match="has no option 'held': did you mean held_out"):
        kind.make(path, held=0.5)
    with open(path, "a") as file:
        file.write("\n")
    assert kind.make(path, held_out=0.5) != data
    with pytest.raises(InputError, match=r"rows.jsonl' is not the file it was"):
        kind.make(path, **described["options"])


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), True, "0.1", None])
def test_a_fraction_that_is_none_is_refused(value, tmp_path):
    data = TEXTS.make(written(tmp_path / "rows.jsonl", some_rows("text", 1)), held_out=0)
    with pytest.raises(InputError, match=r"TextOptions.held_out = .* is not accepted: expected a number in \[0, 1\)"):
        TEXTS.with_options(data, held_out=value)


def test_options_are_flags_where_they_mean_something():
    def names(kind, name):
        return {flag for flag, _, _ in field_flags(kind.declaration(name), {})}

    assert names(TEXTS, "a.jsonl") == {"held_out", "length"}
    assert names(PROMPTS, "a.jsonl") == {"held_out", "max_prompt", "too_long"}
    for kind in (COMPLETIONS, PREFERENCES, LABELS):
        assert names(kind, "a.jsonl") == {"held_out", "max_prompt", "max_completion", "too_long"}
    assert all(names(kind, "grammar") == names(kind, "a.jsonl") | {"examples"} for kind in KINDS.values())


def test_packed_data_is_shared_leaves_and_static_names(tmp_path):
    path = written(tmp_path / "rows.jsonl", some_rows("completion", 50))
    packed = [COMPLETIONS.make(path, held_out=0.3).packed(TOKENIZER, CONTEXT) for _ in range(2)]
    assert jax.tree.structure(packed[0]) == jax.tree.structure(packed[1])
    assert hash(packed[0]) == hash(packed[1])
    assert packed[0] == packed[1] != COMPLETIONS.make(path, held_out=0.3)
    for a, b in zip(*map(jax.tree.leaves, packed), strict=True):
        np.testing.assert_array_equal(a, b)
    data = packed[0]
    assert data.packed(Bytes(), CONTEXT) is data
    assert data.packed(Bytes(), CONTEXT + 1) is not data
    assert [column.shape[1:] for column in data.train] == [column.shape[1:] for column in data.held_out]
    again = dataclasses.replace(data)
    assert again.train is data.train
    assert isinstance(COMPLETIONS.with_options(data, max_prompt=3), Data)
    assert COMPLETIONS.with_options(data, max_prompt=3).train is None
    counted = jax.jit(lambda data: data.train.completion_mask.sum())(data)
    assert counted == data.train.completion_mask.sum()


def test_an_epoch_has_every_row_at_most_once():
    num_rows, batch_size = 10, 3
    rows = jax.jit(jax.vmap(lambda i: epoch_rows(jax.random.key(0), i, num_rows, batch_size)))(jnp.arange(60))
    epochs = np.asarray(rows).reshape(20, 9)
    assert all(len({*epoch}) == 9 for epoch in epochs.tolist())
    assert {*epochs.ravel().tolist()} == {*range(num_rows)}
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 20
    left_out = [({*range(num_rows)} - {*epoch}).pop() for epoch in epochs.tolist()]
    assert len({*left_out}) > 3
    np.testing.assert_array_equal(epoch_rows(jax.random.key(0), jnp.int32(17), num_rows, batch_size), rows[17])
