"""The perfect model of the toy set: the exact posterior, as a look.

All right captions of a scene are known, with their odds, so what a partly masked window leaves open
can be computed: the average of the captions that agree with what is committed. None is listed.
Given the preposition, opening and phrases are independent of one another, so that a caption falls
into segments, each with a few alternatives of one length:

    [opening: 4] [phrase: its wordings] [,] [phrase] [and] [phrase] [<eos> ...]

Off the captions it stays defined: each committed token that disagrees multiplies a caption's weight
by EPSILON. With objects in any order the phrases share the scene's objects out, one each: a sum
over sets of objects."""
import math

import torch
import torch.nn.functional as F

from data.toy import COUNT, OPENINGS, PREPOSITIONS, WORDINGS, count_answer

EPSILON = 1e-6
NO_FLOAT64 = ("mps",)  # device types; their sums are the CPU's
FIXED, OPENING, FIRST = 0, 1, 2  # segments: what never varies; the opening; the first phrase


class Exact:
    """The captions of N scenes as tensors: ids (N, 2, A, W) of each place, by preposition and
    alternative; segment (N, W), to which it belongs; log_odds (N, A, S) of a segment's alternatives
    (of which alternative 0 is the only one of FIXED); objects (N,), how many phrases there are."""

    def __init__(self, scenes, prompts, toy, tokenizer):
        """`prompts`: what is asked of each scene; to count, or else to describe. Raises ValueError
        if the alternatives of a segment differ in length, as a tokenizer of other texts may make
        them."""
        self.toy, self.vocab_size = toy, tokenizer.vocab_size
        self.eos_id, self.mask_id = tokenizer.eos_id, tokenizer.mask_id
        odds, joints = WORDINGS[toy.wording], [tokenizer.encode(text) for text in (",", " and")]
        openings = [tokenizer.encode(opening.rstrip()) for opening in OPENINGS]

        def segments(scene, prompt):
            """-> (segment, its alternatives: odds, ids by preposition) in order."""
            if prompt == COUNT:
                yield FIXED, [(1.0, [tokenizer.encode(count_answer(scene))] * 2)]
                return
            yield OPENING, [(1 / len(openings), [ids, ids]) for ids in openings]
            says = [[(share, [tokenizer.encode(" " + toy.phrase(thing, preposition, k))
                              for preposition in PREPOSITIONS])
                     for k, share in enumerate(odds)] for thing in scene]
            for j, mine in enumerate(says):
                if j:
                    yield FIXED, [(1.0, [joints[j == len(scene) - 1]] * 2)]
                yield FIRST + j, sum(says, []) if toy.order == "free" else mine

        rows = [list(segments(*asked)) for asked in zip(scenes, prompts)]
        A = max(len(said) for row in rows for _, said in row)
        W = max(sum(len(said[0][1][0]) for _, said in row) for row in rows)
        self.objects = torch.tensor([max(0, len(row) // 2) for row in rows])
        self.ids = torch.full((len(rows), 2, A, W), self.eos_id)
        self.segment = torch.full((len(rows), W), FIXED)
        self.log_odds = torch.full((len(rows), A, FIRST + int(self.objects.max())), -torch.inf)
        self.log_odds[:, 0] = 0
        for n, row in enumerate(rows):
            start = 0
            for segment, said in row:
                end = start + len(said[0][1][0])
                if any(len(ids) != end - start for _, both in said for ids in both):
                    raise ValueError("the exact posterior needs captions of one length: this "
                                     "tokenizer cuts one wording into more tokens than another")
                self.ids[n, :, :len(said), start:end] = torch.tensor(
                    [ids for _, ids in said]).transpose(0, 1)
                self.segment[n, start:end] = segment
                self.log_odds[n, :len(said), segment] = torch.tensor([o for o, _ in said]).log()
                start = end

    def look(self, rows, device="cpu"):
        """The look of these rows (indices): tokens (B, W'), state -> log probabilities
        (B, W', vocab), state, for a window of any length: of a cut one, of the captions'
        beginnings."""
        sums_on = "cpu" if torch.device(device).type in NO_FLOAT64 else device
        ids, segment, log_odds, objects = (
            x[rows].to(sums_on) for x in (self.ids, self.segment, self.log_odds, self.objects))

        @torch.no_grad()
        def look(tokens, state=None):
            asked_on, tokens = tokens.device, tokens.to(sums_on)
            longer = 0, tokens.shape[1] - segment.shape[1]  # F.pad cuts where this is negative
            here = F.pad(ids, longer, value=self.eos_id)                         # (B, 2, A, W')
            place = F.pad(segment, longer, value=FIXED)[:, None, None].expand_as(here)
            wrong = (tokens != self.mask_id)[:, None, None] & (
                here != tokens[:, None, None])
            score = log_odds[:, None].double().expand(-1, 2, -1, -1).scatter_add(
                3, place, wrong.double() * math.log(EPSILON))                 # (B, 2, A, S)
            evidence, within = score.logsumexp(2), score.softmax(2)
            if self.toy.order == "free" and objects.any():
                evidence, within = shared_out(score, objects, len(WORDINGS[self.toy.wording]))
            preposition = evidence.sum(2).softmax(1)                             # (B, 2)
            weight = (preposition[..., None, None] * within).gather(3, place)    # (B, 2, A, W')
            probs = weight.new_zeros(*tokens.shape, self.vocab_size).scatter_add_(
                2, here.flatten(1, 2).mT, weight.flatten(1, 2).mT)
            log_probs = probs.clamp(min=1e-30).log().float()  # finite: a rule may compute with it
            return log_probs.to(asked_on), None
        return look


def shared_out(score, objects, wordings):
    """Of captions that name each object once, in any order: `score` (B, 2, A, S), as in `look`, its
    alternatives object by object, `wordings` of each -> evidence (B, 2, S), posterior of each
    segment's alternatives (B, 2, A, S)."""
    M = score.shape[3] - FIRST
    by_object = score[:, :, :M * wordings, FIRST:].unflatten(2, (M, wordings))  # (B, 2, M, K, M)
    names = by_object.logsumexp(3).mT                                # (B, 2, phrase, object)
    real = torch.arange(M, device=score.device) < objects[:, None]   # the rest name themselves
    padding = torch.eye(M, device=score.device).log().to(score)
    names = torch.where((real[:, None] & real[:, :, None])[:, None], names, padding)
    total = lambda terms: torch.stack(terms).logsumexp(0)
    size, everything = int.bit_count, 2 ** M - 1
    has = lambda group, a: group >> a & 1
    sets = sorted(range(2 ** M), key=size)
    before, after = {0: names.new_zeros(names.shape[:2])}, {everything: 0.0}
    for group in sets[1:]:    # the first phrases name this set
        before[group] = total([before[group ^ 1 << a] + names[..., size(group) - 1, a]
                               for a in range(M) if has(group, a)])
    for group in sets[-2::-1]:  # the phrases after those that name this set name the others
        after[group] = total([names[..., size(group), a] + after[group | 1 << a]
                              for a in range(M) if not has(group, a)])
    named = torch.stack([torch.stack([
        total([before[group] + names[..., j, a] + after[group | 1 << a]
               for group in sets if size(group) == j and not has(group, a)])
        for j in range(M)], -1) for a in range(M)], -2)              # (B, 2, object, phrase)
    named = (named - before[everything][..., None, None]).exp()
    evidence, within = score.logsumexp(2), score.softmax(2)
    evidence[..., FIRST:] = 0
    evidence[..., FIRST] = before[everything]
    within[..., FIRST:] = 0
    within[:, :, :M * wordings, FIRST:] = (
        named[:, :, :, None] * by_object.softmax(3).nan_to_num(0)).flatten(2, 3)
    return evidence, within


def fewest_passes(toy, objects):
    """Passes after which a caption of this many objects can always be whole, if each pass commits
    places that are independent of one another given what is committed. Raises ValueError for
    objects in any order: what is independent then depends on the scene.

    With one wording 2, with more 2 for a single object and 3 for several.

    Enough: pass 1 commits all that never varies (joints, end), the opening's first word, and each
    phrase's second, by which its wording is known ("large", "the", "top"), but not the preposition;
    these are drawn independently. Pass 2 commits the rest, but of the prepositions only one:
    nothing else is open. Pass 3 commits the other prepositions. A single object has one
    preposition, and one wording puts them in known places, so that pass 1 can take one: pass 3 is
    not needed.

    Needed: an opening's words are each other's functions, so one pass can commit one of them, and
    never all. Of several phrases in several wordings, pass 1 (which knows nothing) can commit one
    place at most that may hold a preposition: two of one phrase exclude each other, two of two
    phrases agree. With some luck of the draw that place does not hold it, and two phrases have one
    each: these are equal, and cannot go in one pass."""
    if toy.order == "free":
        raise ValueError("fewest_passes: for objects in reading order")
    return 3 if objects > 1 and len(WORDINGS[toy.wording]) > 1 else 2
