"""Worlds known exactly: what a rule makes of the perfect model, held against the true odds.

A world has a look, the exact posterior of its windows, and the odds of what may come out. A rule
that samples truly shows each outcome as often as its odds say. How far it is from that is a total
variation: the share of what came out that would have to be something else. In each world words
depend on each other in another way:

    captions  near by, or alike: words of one phrase, and prepositions, which agree
    orders    by exclusion: objects in any order, each named once
    walks     as a chain: each step of a walk on a graph depends on the step before
    pairs     far apart, and unlike: each place decides the word of one other place

As in `data.exact`, a committed token that disagrees multiplies a window's odds by a tiny number, so
that looks stay defined whatever a rule commits."""
import itertools
import math
import re
from collections import Counter
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

from data import DESCRIBE, toy
from data.exact import Exact
from mini_dimple import Config, decode

SAMPLES = 2000   # windows that a distance is measured on
BATCH = 250      # decoded at once
EPSILON = 1e-12  # of walks and pairs: less than data.exact's, as they have 48 words to choose


class World(NamedTuple):
    """A window shows one outcome or more, each one of K; what cannot be right has odds 0."""
    name: str
    config: Config
    look: Callable        # B -> the look of B windows
    outcomes: Callable    # tokens (B, W) on the CPU -> (B, n) indices
    true: Callable        # B, generator -> the same of a true sampler
    odds: torch.Tensor    # (K,) their sum is 1
    likely: torch.Tensor  # (K,) which share of an outcome's choices took the likelier value


def total_variation(outcomes, odds):
    """Indices of any shape, odds (K,) -> half of what shares and odds differ by, in all: 0 to 1."""
    shares = torch.bincount(outcomes.flatten(), minlength=len(odds)).double() / outcomes.numel()
    return (shares - odds).abs().sum().item() / 2


def by_chance(world, n, repeats=20):
    """The distance that n windows of a true sampler show, in the mean."""
    g = torch.Generator().manual_seed(0)
    return sum(total_variation(world.true(n, g), world.odds) for _ in range(repeats)) / repeats


def measure(world, way, n):
    """n windows by `way(B) -> Decoded` -> right, the share of windows; distance, total variation;
    likelier, the share of the choices in right windows that took the likelier value; passes."""
    torch.manual_seed(0)
    found = [way(len(part)) for part in torch.arange(n).split(BATCH)]
    outcomes = torch.cat([world.outcomes(one.tokens.cpu()) for one in found])
    right = (world.odds[outcomes] > 0).all(1)
    likelier = world.likely[outcomes[right]].mean().item() if right.any() else None
    return dict(right=right.double().mean().item(), likelier=likelier,
                distance=total_variation(outcomes, world.odds),
                passes=torch.cat([one.passes for one in found]).double().mean().item())


def by_rule(world, rule, temperature=1.0):
    """What `measure` takes: a rule on the world's own look."""
    window = lambda B: torch.full((B, world.config.window), world.config.mask_id)
    return lambda B: decode(world.look(B), window(B), world.config, rule, temperature)


def drawn(odds, n):
    """n independent draws by these odds, as `World.true`."""
    return lambda B, g: torch.multinomial(odds.expand(B, -1), n, replacement=True, generator=g)


# ---------------------------------------------------------------- the toy set

class Words:
    """A tokenizer of the words of some captions, a comma among them: few, so that a pass is
    quick."""

    def __init__(self, texts):
        self.words = sorted({",", "and", *" ".join(texts).replace(",", "").split()})
        self.eos_id, self.mask_id, self.vocab_size = range(len(self.words), len(self.words) + 3)

    def encode(self, text):
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids).replace(" ,", ",")


def scene_of(board, objects):
    """A held-out scene of so many objects, as a Split."""
    board = board._replace(fewest=objects, most=objects)
    return toy.examples(board, 1, 0, True, DESCRIBE)


def captions(board, scene, tokenizer=None, window=48):
    """A scene of the toy set. The outcomes are its captions; with objects in any order these are
    many, and it is their phrases, whatever the opening and the preposition."""
    free, ways = board.order == "free", toy.WORDINGS[board.wording]
    phrases = lambda text: re.sub(r"^(\w+ ){3}|\b(at|in) ", "", text)
    kind = lambda text: text if not free else toy.parse(text, board) and phrases(text)
    texts, odds, likely = [], Counter(), {}
    for order, ks, opening, preposition in itertools.product(
            itertools.permutations(scene) if free else [scene],
            itertools.product(range(len(ways)), repeat=len(scene)), toy.OPENINGS, toy.PREPOSITIONS):
        texts.append(toy.caption(order, board, opening, preposition, ks))
        odds[kind(texts[-1])] += math.prod(ways[k] for k in ks)
        likely[kind(texts[-1])] = ks.count(0) / len(ks)
    index, law = {one: i for i, one in enumerate(odds)}, torch.tensor([*odds.values(), 0]).double()
    tokenizer = tokenizer or Words(texts)
    exact, eos_id = Exact([scene], [DESCRIBE], board, tokenizer), tokenizer.eos_id
    said = lambda ids: tokenizer.decode(itertools.takewhile(lambda i: i != eos_id, ids))
    return World(
        "orders" if free else "captions",
        Config(tokenizer.vocab_size, eos_id, tokenizer.mask_id, window=window),
        lambda B: exact.look([0] * B),
        lambda tokens: torch.tensor([[index.get(kind(said(row)), len(index))]
                                     for row in tokens.tolist()]),
        drawn(law, 1), law / law.sum(), torch.tensor([*likely.values(), 0]))


# ---------------------------------------------------------------- walks, and pairs

def graph(N, ways, seed):
    """The successors of N nodes, at random: (N, ways)."""
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(N, generator=g)[:ways] for _ in range(N)])


def walks(W=48, N=24, odds=(0.5, 0.3, 0.2), seed=0):
    """Random walks on a graph, a node at each place; the first is drawn from the stationary law.
    The outcomes are triples of steps, each told by the rank of its edge, or as one that is none."""
    ways, odds, following = len(odds), torch.tensor(odds).double(), graph(N, len(odds), seed)
    step = torch.zeros(N, N).double().scatter_(1, following, odds.expand(N, ways))
    first = torch.linalg.matrix_power(step, 1000)[0]
    rank = torch.full((N + 2, N + 2), ways)
    rank[:N] = rank[:N].scatter(1, following, torch.arange(ways).expand(N, ways))

    def look(tokens, state=None):
        """Forward and backward sums."""
        agrees = (tokens[..., None] == torch.arange(N)) | (tokens == N + 1)[..., None]
        fits = torch.where(agrees, 1.0, EPSILON).double()  # (B, W, N)
        scaled = lambda x: x / x.sum(1, keepdim=True)
        before, after = [scaled(first * fits[:, 0])], [torch.ones_like(fits[:, 0])]
        for t in range(1, tokens.shape[1]):
            before.append(scaled(before[-1] @ step * fits[:, t]))
            after.append(scaled(after[-1] * fits[:, -t] @ step.mT))
        probs = F.pad(torch.stack(before, 1) * torch.stack(after[::-1], 1), (0, 2))
        return (probs / probs.sum(-1, keepdim=True)).clamp(min=1e-30).log().float(), None

    kinds = torch.cartesian_prod(*[torch.arange(ways + 1)] * 3)  # (K, 3) ranks
    triples = lambda ranks: (ranks.unfold(1, 3, 1) * (ways + 1) ** torch.tensor([2, 1, 0])).sum(-1)
    return World(
        "walks", Config(N + 2, N, N + 1, window=W), lambda B: look,
        lambda tokens: triples(rank[tokens[:, :-1], tokens[:, 1:]]),
        lambda B, g: triples(drawn(odds, W - 1)(B, g)),
        F.pad(odds, (0, 1))[kinds].prod(1), (kinds == 0).double().mean(1))


def pairs(W=48, odds=(0.4, 0.3, 0.2, 0.1), seed=0):
    """Places tied two by two, wherever they are: the first has word k by these odds, the other the
    word after k. The outcomes are the k of each pair, or that its words do not belong together."""
    N, odds, words = len(odds), torch.tensor(odds).double(), torch.arange(len(odds))
    first, other = torch.randperm(W, generator=torch.Generator().manual_seed(seed)).view(2, -1)

    def look(tokens, state=None):
        wrong = (tokens[..., None] != words) & (tokens != N + 1)[..., None]  # (B, W, N)
        wrong = wrong[:, first].double() + wrong[:, other].roll(-1, -1)
        posterior = (odds.log() + wrong * math.log(EPSILON)).softmax(-1)     # (B, W / 2, N) of k
        probs = posterior.new_zeros(*tokens.shape, N + 2)
        probs[:, first, :N], probs[:, other, :N] = posterior, posterior.roll(1, -1)
        return probs.clamp(min=1e-30).log().float(), None

    return World(
        "pairs", Config(N + 2, N, N + 1, window=W), lambda B: look,
        lambda tokens: torch.where((tokens[:, first] + 1) % N == tokens[:, other],
                                   tokens[:, first], N).clamp(max=N),
        drawn(odds, W // 2), F.pad(odds, (0, 1)), (torch.arange(N + 1) == 0).double())


def all_worlds():
    """Those of `python -m lab worlds`; of the toy set a scene of two objects, and one of three."""
    board = toy.TOYS["tiny"]
    free = board._replace(order="free")
    return [captions(board, scene_of(board, 2).scenes[0]),
            captions(free, scene_of(free, 3).scenes[0]), walks(), pairs()]
