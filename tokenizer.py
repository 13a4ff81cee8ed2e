"""Byte-level BPE: train / encode / decode, in the standard library only.

Token ids: 0..255 are the bytes, then one id per merge in the order learnt, then two special tokens:
EOS (also the padding) and MASK. The special tokens are numbers, not spellings: `encode` never
returns them, whatever the text says.
"""
import math
import re
import unicodedata
from collections import Counter, defaultdict

# What belongs to the letter before it: accents, vowel signs, the joiners of Indic scripts
MARKS = "\u200c\u200d" + "".join(
    c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c)[0] == "M")
# A word keeps its leading space, so that " circle" is one token; every character falls into exactly
# one alternative.
CHUNK = re.compile(rf" ?\w[\w{MARKS}]*| ?[^\w\s]+|\s+(?!\S)|\s+")
MAX_BYTES = 1_000  # in a token: 40 merges that double each token would fill any memory


def merge(ids, pair, new_id):
    """`ids` (a list) with every occurrence of `pair`, left to right, replaced by `new_id`."""
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


class Tokenizer:
    """`merges`: the pairs of ids joined, in the order learnt; merge i makes token 256 + i."""

    def __init__(self, merges):
        """Raises ValueError, with what was expected and what came, for merges that cannot be."""
        self.rank = {}  # pair -> the token that it becomes
        self.bytes = [bytes([i]) for i in range(256)]
        for i, pair in enumerate(merges):
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2
                    and all(type(part) is int and 0 <= part < 256 + i for part in pair)):
                raise ValueError(f"merge {i}: expected two ids from 0 to {255 + i}, "
                                 f"got {pair!r:.60}")
            pair = a, b = tuple(pair)
            if pair in self.rank:
                raise ValueError(f"merge {i}: expected a pair not given before, got {pair}, "
                                 f"which is merge {self.rank[pair] - 256}")
            size = len(self.bytes[a]) + len(self.bytes[b])
            if size > MAX_BYTES:
                raise ValueError(f"merge {i}: expected a token of at most {MAX_BYTES:,} bytes, "
                                 f"got {pair}, which makes one of {size:,}")
            self.rank[pair] = 256 + i
            self.bytes.append(self.bytes[a] + self.bytes[b])
        self.merges = list(self.rank)
        self.eos_id = len(self.bytes)  # end of the response, and the padding after it
        self.mask_id = self.eos_id + 1
        self.vocab_size = self.eos_id + 2
        self.cache = {}  # chunk -> ids

    @classmethod
    def train(cls, texts, vocab_size=1024):
        """Learn merges from an iterable of strings until the vocabulary is full or no pair occurs
        twice."""
        counts = Counter(chunk for text in texts for chunk in CHUNK.findall(text))
        chunks = [list(chunk.encode("utf-8", "surrogatepass")) for chunk in counts]
        times = list(counts.values())
        # pair -> occurrences; pair -> the chunks that have it
        pairs, where = Counter(), defaultdict(set)
        for i, ids in enumerate(chunks):
            for pair in zip(ids, ids[1:]):
                pairs[pair] += times[i]
                where[pair].add(i)
        merges, sizes = [], [1] * 256  # of each token, in bytes
        while len(merges) < vocab_size - 258 and pairs:
            # the pair itself breaks ties: always the same merges
            best = max(pairs, key=lambda pair: (pairs[pair], pair))
            if pairs[best] < 2:
                break
            size = sizes[best[0]] + sizes[best[1]]
            if size > MAX_BYTES:
                pairs[best] = -math.inf  # whatever is counted from here on: never again
                continue
            for i in where[best].copy():
                for pair in zip(chunks[i], chunks[i][1:]):
                    pairs[pair] -= times[i]
                chunks[i] = merge(chunks[i], best, 256 + len(merges))
                for pair in zip(chunks[i], chunks[i][1:]):
                    pairs[pair] += times[i]
                    where[pair].add(i)
            del pairs[best]
            merges.append(best)
            sizes.append(size)
        return cls(merges)

    def encode(self, text):
        """Text -> list of ids. Lossless: `decode` gives the text back."""
        ids = []
        for chunk in CHUNK.findall(text):
            if chunk not in self.cache:
                self.cache[chunk] = self._encode_chunk(chunk)
            ids += self.cache[chunk]
        return ids

    def _encode_chunk(self, chunk):
        ids = list(chunk.encode("utf-8", "surrogatepass"))
        while len(ids) > 1:  # replay the merges, the earliest learnt first
            pair = min(zip(ids, ids[1:]), key=lambda pair: self.rank.get(pair, self.vocab_size))
            if pair not in self.rank:
                break
            ids = merge(ids, pair, self.rank[pair])
        return ids

    def decode(self, ids):
        """Iterable of ids -> text. EOS and MASK give nothing; bytes that are no UTF-8 give U+FFFD.

        Raises IndexError for an id outside the vocabulary."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise IndexError(f"token id {i}: the vocabulary has ids 0 to {self.vocab_size - 1}")
        raw = b"".join(self.bytes[i] for i in ids if i < self.eos_id)
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return raw.decode("utf-8", "replace")
