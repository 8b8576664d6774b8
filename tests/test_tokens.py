"""Tokenizers: what goes in comes out, special ids are kept apart, and a file is the same file or refused."""

import json
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pgjax import InputError
from pgjax.alignment.tokenizers import TOKENIZERS, Bytes, Words

TEXTS = ["", "the cat sat on the mat!", " a  b\n\tc ", "Grüße, 世界 🙂", "!!! !"]


def saved(folder, *specials):
    """A byte-level BPE in `folder`, whose file asks for all that a tokenizer may do besides."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=264, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 4, trainer)
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {specials[0]}", special_tokens=[(specials[0], 0)]
        )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(tmp_path):
    """<eos> is 0 and <pad> is 1; no file says so."""
    return saved(tmp_path, "<eos>", "<pad>")


def says(folder, file, **values):
    (folder / file).write_text(json.dumps(values))


def test_bytes():
    tokenizer = Bytes()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == list(text.encode())
        assert tokenizer.decode([257, *ids, 256, 257]) == text
    assert tokenizer.decode([0xE4, 65]) == "�A"
    assert (tokenizer.vocab, tokenizer.eos, tokenizer.pad) == (258, 256, 257)
    assert tokenizer == Bytes()
    assert hash(tokenizer) == hash(Bytes())


def test_words():
    tokenizer = Words(("a", "cat", "sat"))
    assert tokenizer.encode(" cat\n sat  cat ") == [1, 2, 1]
    assert tokenizer.decode([4, 4, 1, 2, 1, 3, 4]) == "cat sat cat"
    assert (tokenizer.vocab, tokenizer.eos, tokenizer.pad) == (5, 3, 4)
    assert tokenizer == Words(["a", "cat", "sat"])
    assert hash(tokenizer) == hash(Words(["a", "cat", "sat"]))
    assert tokenizer != Words(("a", "sat", "cat"))
    with pytest.raises(InputError, match=r"the word 'cart' is not in the vocabulary: did you mean cat or sat"):
        tokenizer.encode("a cart")


@pytest.mark.parametrize("word", ["", "two words", "a", " b"])
def test_words_that_cannot_be_told_apart_are_refused(word):
    with pytest.raises(InputError, match=r"Words.words\["):
        Words(("a", word))


def test_a_file_gives_back_what_it_was_given(folder):
    tokenizer = TOKENIZERS.make(str(folder), eos=0, pad=1)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode([1, 1, *ids, 0, 1]) == text
        assert not {0, 1} & set(ids)
    assert len(tokenizer.encode(TEXTS[1])) < len(TEXTS[1].encode())
    assert tokenizer.vocab == 264


def test_without_a_pad_texts_keep_the_token_that_fills(tmp_path):
    tokenizer = TOKENIZERS.make(str(saved(tmp_path, "<eos>") / "tokenizer.json"), eos=0)
    assert tokenizer.pad == 1 == tokenizer.encode("!")[0]
    assert tokenizer.decode(tokenizer.encode("!!! !")) == "!!! !"
    assert TOKENIZERS.make(str(tmp_path), eos=1).pad == 0


SAYINGS = [
    ("config.json", {"eos_token_id": 7, "pad_token_id": 1}),
    ("generation_config.json", {"eos_token_id": [6, 7]}),
    ("special_tokens_map.json", {"eos_token": {"content": "<pad>"}, "pad_token": "<eos>"}),
    ("tokenizer_config.json", {"eos_token": "<eos>", "pad_token": {"content": "<pad>"}}),
]


def test_special_ids_are_those_of_the_first_file_that_knows(folder):
    found = []
    for file, values in SAYINGS:
        says(folder, file, **values)
        tokenizer = TOKENIZERS.make(str(folder))
        found.append((tokenizer.eos, tokenizer.pad))
    assert found == [(7, 1), (6, 1), (1, 0), (0, 1)]
    says(folder, "tokenizer_config.json", eos_token="not there", pad_token=None)
    assert TOKENIZERS.make(str(folder)).eos == 1
    tokenizer = TOKENIZERS.make(str(folder), eos=5, pad=8)
    assert (tokenizer.eos, tokenizer.pad) == (5, 8)
    assert tokenizer.decode([0, 5, 1]) == "<eos><pad>", "special tokens that neither end nor fill are spelled out"


def test_special_ids_that_are_missing_or_no_use_are_refused(folder):
    path = str(folder)
    with pytest.raises(InputError, match="pass eos"):
        TOKENIZERS.make(path)
    says(folder, "tokenizer_config.json", eos_token="<eos>", pad_token="<eos>")
    with pytest.raises(InputError, match="pad and eos are both 0: pass pad"):
        TOKENIZERS.make(path)
    assert TOKENIZERS.make(path, pad=1).pad == 1
    for options in ({"eos": 264}, {"eos": -1}, {"pad": 264}, {"eos": True}, {"eos": 2.0}):
        with pytest.raises(InputError, match=r"expected an id in \[0, 264\)"):
            TOKENIZERS.make(path, **({"pad": 1} | options))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config.json is not JSON"):
        TOKENIZERS.make(path)


def test_a_file_is_known_by_its_content(folder):
    tokenizer = TOKENIZERS.make(str(folder), eos=0, pad=1)
    described = json.loads(json.dumps(TOKENIZERS.describe(tokenizer)))
    assert described["name"] == str(folder)
    assert described["options"].keys() == {"sha256", "eos", "pad"}
    again = TOKENIZERS.make(described["name"], **described["options"])
    assert again == tokenizer == TOKENIZERS.make(str(folder / "tokenizer.json"), eos=0, pad=1)
    assert hash(again) == hash(tokenizer)
    other = TOKENIZERS.with_options(tokenizer, pad=5)
    assert (other.eos, other.pad) == (0, 5)
    assert other != tokenizer
    assert TOKENIZERS.options(tokenizer) == {"eos": False, "pad": False}
    with (folder / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert TOKENIZERS.make(str(folder), eos=0, pad=1) != tokenizer
    with pytest.raises(InputError, match="is not the file it was"):
        TOKENIZERS.make(described["name"], **described["options"])


def test_bytes_are_a_part():
    assert TOKENIZERS.make("bytes") == Bytes()
    assert TOKENIZERS.describe(Bytes()) == {"name": "bytes", "options": {}}
    assert TOKENIZERS.options(Bytes()) == {}
    assert TOKENIZERS.declaration("bytes") is None


def test_names_and_options_that_are_not_known_are_refused(folder, monkeypatch):
    with pytest.raises(InputError, match=r"tokenizer = 'byte' is not known: expected bytes, grammar, addition, sums"):
        TOKENIZERS.make("byte")
    with pytest.raises(InputError, match="tokenizer bytes has no option 'pad': expected none"):
        TOKENIZERS.make("bytes", pad=3)
    with pytest.raises(InputError, match="has no option 'eof': did you mean eos"):
        TOKENIZERS.make(str(folder), eof=3)
    (folder / "broken.json").write_text("{}")
    with pytest.raises(InputError, match=r"broken.json' cannot be read"):
        TOKENIZERS.make(str(folder / "broken.json"), eos=0)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'pgjax\[language\]'"):
        TOKENIZERS.make(str(folder), eos=0)
