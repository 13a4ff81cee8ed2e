"""Round trips on awkward strings, words as single tokens, merges that cannot be."""
import itertools
import random
import re

import pytest
import torch

from data import toy
from tokenizer import CHUNK, MAX_BYTES, Tokenizer, merge

TRAINED = Tokenizer.train(["there is a red circle at the top left",
                           "i can see a red square and a red circle"] * 3)
AWKWARD = ["", " ", "\n\n\t ", "a", "  two  spaces  ", "<eos>", "<mask>", "[MASK]", "_ _",
           "<|endoftext|><|mask|>", "naïve café", "日本語のテキスト", "👩‍👩‍👧 family", "٣ ½ Ⅷ x_1",
           "\u202eright to left", "e\u0301 combining", "\0 nul", "\ud800 lone surrogate"]


@pytest.mark.parametrize("tokenizer", [TRAINED, Tokenizer([]), Tokenizer.train(AWKWARD * 2)],
                         ids=["trained", "bytes", "on these"])
def test_round_trip(tokenizer):
    rng, kinds = random.Random(0), (range(128), range(0xD800), range(0xE000, 0x110000))
    drawn = ["".join(chr(rng.choice(rng.choice(kinds))) for _ in range(rng.randrange(40)))
             for _ in range(300)]
    for text in AWKWARD + drawn:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.eos_id, tokenizer.mask_id} & set(ids)


def test_special_tokens_decode_to_nothing_and_any_ids_decode_to_something():
    t = TRAINED
    assert t.decode([t.eos_id, *t.encode("a red"), t.mask_id, t.eos_id]) == "a red"
    assert t.decode(torch.tensor([65])) == "A"
    assert t.decode([*t.encode("é")[:1], 97]) == "\ufffda", "bytes that are no text are marked"
    for token in (-1, t.vocab_size):
        with pytest.raises(IndexError, match=str(token)):
            t.decode([65, token])


@pytest.mark.parametrize("preset, wording", [*itertools.product(toy.TOYS, toy.WORDINGS)])
def test_every_word_of_the_toy_grammar_is_one_token(preset, wording):
    """Of its openings, too: `data.exact` needs captions of one length."""
    split = toy.examples(toy.TOYS[preset]._replace(wording=wording), 600, 0, held_out=False)
    tokenizer = Tokenizer.train(split.texts + split.prompts)
    for text in split.texts[:200] + [toy.DESCRIBE, toy.COUNT]:
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


DOUBLING = [[97, 97], *([i, i] for i in range(256, 600))]  # 4 KB as a file, and 2^345 bytes
BAD = [  # merges, which is wrong
    (DOUBLING, "merge 9"), ([[97, 98], [256, 257]], "merge 1"), ([[97, 300], [97, 98]], "merge 0"),
    ([[97, 98], [-1, 97]], "merge 1"), ([[97, 98], [98, 97], [97, 98]], "merge 2"),
    *(([bad], "merge 0") for bad in (5, [97, 98, 99], [97, 98.0]))]


@pytest.mark.parametrize("merges, named", BAD)
def test_merges_that_cannot_be_are_named(merges, named):
    with pytest.raises(ValueError, match=named):
        Tokenizer(merges)


def test_no_token_of_a_huge_word_is_longer_than_may_be():
    word = "é" * 12_500
    texts = [word, f"a red circle {word}", "a red circle"]
    tokenizer = Tokenizer.train(texts, vocab_size=320)
    assert MAX_BYTES / 2 < max(map(len, tokenizer.bytes)) <= MAX_BYTES
    assert len(tokenizer.encode("a red circle")) == 3, "other words are learnt as ever"
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


@pytest.mark.parametrize("text, words", [
    ("एक नीला तारा नीचे दाईं ओर", 6), ("ஒரு சிறிய வட்டம்", 3), ("le cafe\u0301 de\u0301ja\u0300", 3),
    ("כּוֹכָב כָּחֹל", 2), ("می\u200cروند خانه", 2), ("a - b\u0301_1, c", 5)])
def test_marks_belong_to_their_letter(text, words):
    tokenizer = Tokenizer.train([text] * 2)
    assert "".join(CHUNK.findall(text)) == tokenizer.decode(tokenizer.encode(text)) == text
    assert len(CHUNK.findall(text)) == len(tokenizer.encode(text)) == words


def test_texts_without_marks_are_cut_as_ever():
    before = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")
    split = toy.examples(toy.TOYS["small"], 200, 0, False)
    for text in [*split.texts, *split.prompts, "It's 7:30 - (a_b), über 9 €\n\t x", "猫 и 🙂"]:
        assert CHUNK.findall(text) == before.findall(text)
