"""Round trips on awkward strings, words as single tokens, files, merges that cannot be."""
import itertools
import json
import random

import pytest
import torch

from data import toy
from tokenizer import CHUNK, FORMAT, MAX_BYTES, Tokenizer, merge

TRAINED = Tokenizer.train(["there is a red circle at the top left",
                           "i can see a red square and a red circle"] * 3)
AWKWARD = ["", " ", "\n\n\t ", "a", "  two  spaces  ", "<eos>", "<mask>", "[MASK]", "_ _",
           "<|endoftext|><|mask|>", "naïve café", "日本語のテキスト", "👩‍👩‍👧 family", "٣ ½ Ⅷ x_1",
           "\u202eright to left", "e\u0301 combining", "\0 nul", "\ud800 lone surrogate"]


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("tokenizer", [TRAINED, Tokenizer([]), Tokenizer.train(AWKWARD * 2)],
                         ids=["trained", "bytes", "on these"])
def test_round_trip(text, tokenizer):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.eos_id, tokenizer.mask_id} & set(ids)


def test_round_trip_of_random_unicode():
    rng = random.Random(0)
    for _ in range(500):
        kinds = range(128), range(0xD800), range(0xE000, 0x110000)
        text = "".join(chr(rng.choice(rng.choice(kinds))) for _ in range(rng.randrange(40)))
        assert TRAINED.decode(TRAINED.encode(text)) == text


def test_special_tokens_decode_to_nothing_and_any_ids_decode_to_something():
    t = TRAINED
    assert t.decode([t.eos_id, *t.encode("a red"), t.mask_id, t.eos_id]) == "a red"
    rng = random.Random(0)
    for _ in range(200):
        assert isinstance(t.decode([rng.randrange(t.vocab_size) for _ in range(20)]), str)
    with pytest.raises(IndexError):
        t.decode([t.vocab_size])


@pytest.mark.parametrize("preset, wording", [*itertools.product(toy.TOYS, toy.WORDINGS)])
def test_every_word_of_the_toy_grammar_is_one_token(preset, wording):
    """Of its openings, too: `data.exact` needs captions of one length."""
    split = toy.examples(toy.TOYS[preset]._replace(wording=wording), 1500, 0, held_out=False)
    tokenizer = Tokenizer.train(split.texts + split.prompts)
    for text in split.texts[:300] + [toy.DESCRIBE, toy.COUNT]:
        assert len(tokenizer.encode(text)) == len(text.replace(",", " ,").split())


def test_training_merges_the_most_frequent_pair_first_and_stops_at_the_vocabulary():
    tokenizer = Tokenizer.train(["abab abab ab"], vocab_size=259)
    assert tokenizer.merges == [(ord("a"), ord("b"))] and tokenizer.vocab_size == 259
    assert Tokenizer.train(["xyz"]).merges == []  # no pair occurs twice
    assert Tokenizer.train([]).vocab_size == 258


def test_training_equals_counting_everything_again_for_each_merge():
    rng = random.Random(0)
    word = lambda: "".join(rng.choice("abc") for _ in range(rng.randint(1, 6)))
    texts = [" ".join(word() for _ in range(8)) for _ in range(20)]
    learnt = Tokenizer.train(texts, vocab_size=290).merges
    chunks = [list(c.encode()) for text in texts for c in CHUNK.findall(text)]
    for i, pair in enumerate(learnt):
        counts = {}
        for ids in chunks:
            for p in zip(ids, ids[1:]):
                counts[p] = counts.get(p, 0) + 1
        assert pair == max(counts, key=lambda p: (counts[p], p))
        chunks = [merge(ids, pair, 256 + i) for ids in chunks]
    assert len(learnt) == 32


@pytest.mark.parametrize("token", [-1, -100, -(2 ** 40), 10 ** 6])
def test_ids_outside_the_vocabulary_are_named(token):
    with pytest.raises(IndexError, match=str(token)):
        TRAINED.decode([65, token])
    with pytest.raises(IndexError):
        TRAINED.decode([TRAINED.vocab_size])
    assert TRAINED.decode([65, TRAINED.mask_id, TRAINED.eos_id]) == "A"
    assert TRAINED.decode(torch.tensor([65])) == "A"


def test_save_and_load(tmp_path):
    TRAINED.save(tmp_path / "t.json")
    again = Tokenizer.load(tmp_path / "t.json")
    assert again.merges == TRAINED.merges
    assert again.encode("a red circle") == TRAINED.encode("a red circle")


@pytest.mark.parametrize("content", [
    b"", b"\xff\xfe", b"[]", b"{}", b"[" * 100_000, b'{"format": "other", "merges": []}',
    b'{"format": "mini-dimple tokenizer 1", "merges": 5}',
    b'{"format": "mini-dimple tokenizer 1", "merges": [[1, 999]]}',
    b'{"format": "mini-dimple tokenizer 1", "merges": [5]}'])
def test_foreign_files_are_named(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ValueError, match="t.json: not a tokenizer") as error:
        Tokenizer.load(tmp_path / "t.json")
    assert "\n" not in str(error.value)


DOUBLING = [[97, 97], *([i, i] for i in range(256, 600))]  # 4 KB as a file, and 2^345 bytes
BAD = [  # merges, what is said
    (DOUBLING, r"merge 9: expected a token of at most 1,000 bytes, got \(264, 264\), .* 1,024"),
    ([[97, 98], [256, 257]], r"merge 1: expected two ids from 0 to 256, got \[256, 257\]"),
    ([[97, 300], [97, 98]], r"merge 0: expected two ids from 0 to 255, got \[97, 300\]"),
    ([[97, 98], [-1, 97]], r"merge 1: expected two ids from 0 to 256, got \[-1, 97\]"),
    ([[97, 98], [98, 97], [97, 98]], r"merge 2: .* not given before, got \(97, 98\), .* merge 0"),
    *(([bad], "merge 0: expected two ids from 0 to 255, got ") for bad in (
        5, None, "ab", {"a": 97, "b": 98}, [], [97], [97, 98, 99], [97, 98.0], [97, True],
        ["97", "98"], [[97], [98]], ["\n", 97], ["x" * 10 ** 6, 97], [10 ** 400, 97]))]


@pytest.mark.parametrize("merges, said", BAD)
def test_merges_that_cannot_be_are_named(tmp_path, merges, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        Tokenizer(merges)
    (tmp_path / "t.json").write_text(json.dumps({"format": FORMAT, "merges": merges}))
    with pytest.raises(ValueError, match=rf"t.json: not a tokenizer .*\({said}") as error:
        Tokenizer.load(tmp_path / "t.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(tmp_path)) + 200


@pytest.mark.parametrize("word", ["ab" * 12_500, "é" * 12_500, " " * 25_000])
def test_no_token_of_a_huge_word_is_longer_than_may_be(tmp_path, word):
    texts = [word, f"a red circle {word}", "a red circle"]
    tokenizer = Tokenizer.train(texts, vocab_size=320)
    assert MAX_BYTES / 2 < max(map(len, tokenizer.bytes)) <= MAX_BYTES
    assert len(tokenizer.encode("a red circle")) == 3, "other words are learnt as ever"
    tokenizer.save(tmp_path / "t.json")
    for one in (tokenizer, Tokenizer.load(tmp_path / "t.json")):
        assert all(one.decode(one.encode(text)) == text for text in texts)


def test_bytes_that_are_no_text_are_marked():
    tokenizer = Tokenizer.train(["a"])
    assert tokenizer.decode([*tokenizer.encode("é")[:1], *tokenizer.encode("a")]) == "\ufffda"
