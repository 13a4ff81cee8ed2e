"""Each rule of the gallery against a slow, plain computation of its definition; each ends, keeps
what is given, and decodes a batch as each example alone."""
import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import EOS, MASK, random_inputs, random_model, small_config, stateless, traced

from lab import evaluate
from lab.checkpoint import SHIPPED, load
from mini_dimple import Step, confident, decode, full, prefilled
from rules import RuleError, named, resolve

# Numbers that matter on the random models below, where two thirds of the confidences are above 0.5.
DETERMINISTIC = (
    "confident:0.5", "maskgit:3", "entropy:2", "margin:3", "left_to_right:2", "fast_dllm:1.2",
    "eb_sampler:0.7", "klass:threshold=0.4,bound=0.3", "klass:threshold=0.3,bound=1,history=1",
    "blocks:size=5,threshold=0.4", "wino:wide=0.3,narrow=0.6", "no_eos_before:k=5,threshold=0.5",
    "dimple_public:threshold=0.6,steps=7", "dimple_public:threshold=0,steps=5", "peak:0.5",
    "halving", "halving:2", "middle_out:sure=0.5,alike=0.5", "middle_out:sure=0.7,back=0",
    "punt:0.3")
# remask need not end by itself: what it takes back it may commit again, until the limit
OTHERS = (
    "random_order:3", "remdm:steps=9,eta=0.3", "daedal:threshold=0.5,by=3,longest=19",
    "dimple_public:threshold=0.6,steps=6,random=1", "dimple_public:threshold=0.6,steps=7,flat=1",
    "dimple_public:threshold=0,steps=4,random=1,flat=1")


def scripted(seed, vocab=20, scale=1.0):
    """A look of its own on any window: random numbers, which depend on all tokens of the row."""
    def look(tokens):
        rows = []
        for row in tokens.tolist():
            g = torch.Generator().manual_seed(hash((seed, *row)) % 2 ** 32)
            rows.append(scale * torch.randn(len(row), vocab, generator=g, dtype=torch.double))
        return torch.stack(rows)
    return look


def random_window(rng, B, W, given=0.2, mask=0.6):
    """tokens (B, W): given, committed and masked ones; where they are given (B, W)."""
    kinds = [[rng.random() for _ in range(W)] for _ in range(B)]
    tokens = [[MASK if kind < mask else rng.randrange(EOS + 1) for kind in row] for row in kinds]
    return torch.tensor(tokens), torch.tensor(kinds) > 1 - given


def step_on(tokens, given, look, iteration=0, memory=None, generator=None):
    memory = {} if memory is None else memory
    return Step(iteration, 100, tokens, given, look(tokens), look, MASK, EOS, memory,
                generator=generator)


def random_step(seed, B=4, W=9, scale=2.0, **options):
    tokens, given = random_window(random.Random(seed), B, W)
    return step_on(tokens, given, scripted(seed, scale=scale), **options)


def masks(step, b):
    return [i for i in range(step.tokens.shape[1]) if step.tokens[b, i] == MASK]


def chosen(answer, b):
    return set(answer[b].nonzero()[:, 0].tolist())


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


# ---------------------------------------------------------------- all of them

def test_all_are_tried():
    assert {text.split(":")[0] for text in DETERMINISTIC + OTHERS} == set(named()) - {"remask"}


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("text", DETERMINISTIC + OTHERS)
def test_each_ends_keeps_what_is_given_and_decodes_a_batch_as_each_alone(text, prior, seed):
    """From an empty window, and prefilled from one with a prior and an example that is finished at
    once."""
    B, W = 5, 12
    model, (images, prompt, _) = random_model(seed, 0.8), random_inputs(seed, B, W)
    window, look = torch.full((B, W), MASK), prefilled if prior else full
    if prior:
        window, _ = random_window(random.Random(seed), B, W)
        window[0] = 3

    def decoded(rows):
        generator = torch.Generator().manual_seed(seed)
        used = look(model, images[rows], prompt[rows])
        return decode(used, window[rows], model.config, resolve(text), 0.0, generator, limit=200)
    out, given = decoded(slice(None)), window != MASK
    assert not (out.tokens == MASK).any() and not out.left.any(), "by the limit only"
    assert torch.equal(out.tokens[:, :W][given], window[given])
    finished = given.all(1)
    assert (out.tokens[finished, W:] == EOS).all() and not out.iterations[finished].any()
    for b in range(B * (text in DETERMINISTIC)):
        alone = decoded(slice(b, b + 1))
        assert torch.equal(out.tokens[b], alone.tokens[0])
        assert out.iterations[b] == alone.iterations and out.passes[b] == alone.passes


@pytest.mark.parametrize("text", ["random_order:3", "remdm:steps=9,eta=0.3",
                                  "dimple_public:threshold=0,steps=9,random=1"])
def test_chance_is_the_generators(text):
    def run(seed):
        generator, window = torch.Generator().manual_seed(seed), torch.full((4, 12), MASK)
        look = stateless(scripted(0))
        return decode(look, window, small_config(), resolve(text), 0.0, generator).tokens
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


# ---------------------------------------------------------------- k per iteration

@pytest.mark.parametrize("case", range(5))
def test_counted_rules_take_the_best_by_their_own_measure(case):
    step, k = random_step(case), random.Random(case).randint(1, 6)
    measures = {"maskgit": lambda p, i: max(p), "entropy": lambda p, i: -entropy(p),
                "margin": lambda p, i: max(p) - sorted(p)[-2], "left_to_right": lambda p, i: -i}
    for name, measure in measures.items():
        answer = resolve(f"{name}:{k}")(step)
        for b in range(4):
            best = sorted(masks(step, b), key=lambda i: -measure(step.probs[b, i].tolist(), i))
            assert chosen(answer, b) == set(best[:k]), name


def test_any_k_is_any_k():
    """Each mask in 3 of 5 draws, whatever its confidence; never more or fewer than k."""
    tokens = torch.full((2000, 6), MASK)
    tokens[:, 2] = 4
    step = step_on(tokens, tokens != MASK, lambda tokens: torch.randn(2000, 6, 20),
                   generator=torch.Generator().manual_seed(0))
    answer = resolve("random_order:3")(step)
    assert (answer.sum(1) == 3).all() and not answer[:, 2].any()
    assert (answer[:, [0, 1, 3, 4, 5]].float().mean(0) - 0.6).abs().max() < 0.05


@pytest.mark.parametrize("name", ["maskgit", "random_order"])
def test_k_is_a_whole_number(name):
    step = random_step(0)
    assert torch.equal(resolve(f"{name}:1e300")(step), step.masked)
    for k in (0, 2.5):
        with pytest.raises(RuleError, match="whole number"):
            resolve(f"{name}:{k}")(step)


# ---------------------------------------------------------------- how many at once

@pytest.mark.parametrize("case", range(10))
def test_fast_dllm(case):
    step, factor = random_step(case, scale=4), random.Random(case).choice([0.3, 1, 1.9, 5])
    answer = resolve(f"fast_dllm:{factor}")(step)
    for b in range(4):
        best = sorted(masks(step, b), key=lambda i: -step.confidence[b, i])
        fitting = [n for n in range(1, len(best) + 1)
                   if (n + 1) * (1 - step.confidence[b, best[n - 1]]) < factor]
        assert chosen(answer, b) == set(best[:max(fitting, default=0)])


@pytest.mark.parametrize("case", range(10))
def test_eb_sampler(case):
    step, bound = random_step(case, scale=4), random.Random(case).choice([0, 0.1, 0.7, 3])
    answer = resolve(f"eb_sampler:{bound}")(step)
    for b in range(4):
        h = {i: entropy(step.probs[b, i].tolist()) for i in masks(step, b)}
        lost = lambda some: sum(h[i] for i in some) - max(h[i] for i in some)
        first = sorted(h, key=h.get)
        fitting = [n for n in range(1, len(h) + 1) if lost(first[:n]) <= bound]
        assert chosen(answer, b) == set(first[:max(fitting, default=0)])
        assert fitting or not h, "one always fits"
        larger = itertools.combinations(h, len(chosen(answer, b)) + 1)
        assert all(lost(some) > bound for some in larger), "of all sets, not only of the first ones"


# ---------------------------------------------------------------- what is independent

@pytest.mark.parametrize("case", range(10))
def test_peak_goes_by_the_distribution_whatever_was_drawn(case):
    step = random_step(case)
    for proposal in (step.proposal, step.probs.argmin(-1)):
        step.propose(proposal)
        answer = resolve("peak:0.5")(step)
        for b in range(4):
            peaks = {i: step.probs[b, i].max() for i in masks(step, b)}
            sure = {i for i in peaks if peaks[i] > 0.5} or set(sorted(peaks, key=peaks.get)[-1:])
            assert chosen(answer & step.masked, b) == sure


def plain_runs(places):
    """[2, 3, 4, 8] -> [[2, 3, 4], [8]]"""
    groups = itertools.groupby(enumerate(sorted(places)), lambda at: at[1] - at[0])
    return [[i for _, i in group] for _, group in groups]


@pytest.mark.parametrize("case", range(10))
def test_halving(case):
    step = random_step(case, W=15)
    answer = resolve("halving")(step)
    for b in range(4):
        assert chosen(answer, b) == {run[len(run) // 2] for run in plain_runs(masks(step, b))}


@pytest.mark.parametrize("text, W, passes", [
    ("halving", 7, 3), ("halving", 8, 4), ("halving", 48, 6), ("halving:2", 48, 5),
    ("halving:2", 64, 6), ("halving:3", 27, 3)])
def test_halving_takes_a_logarithm_of_the_window(text, W, passes):
    """With a base, the fixed grid: of 48 every 24th, then 12th, 6th, 3rd, and the rest."""
    out = traced(stateless(scripted(0)), torch.full((2, W), MASK), small_config(), resolve(text))
    assert out.iterations.tolist() == [passes] * 2
    if ":" in text:
        base = int(text[-1])
        for t, record in enumerate(out.trace, 1):
            every = max(1, W // base ** t)
            assert all((token != MASK) >= (i % every == 0)
                       for i, token in enumerate(record.tokens[0].tolist()))


@pytest.mark.parametrize("case", range(20))
def test_middle_out(case):
    """In a plain loop: the middle of each run, or the surer of two; of places alone that are alike,
    one."""
    tokens, given = random_window(random.Random(case), 4, 16)
    step, taken = step_on(tokens, given, scripted(case, scale=3)), 0
    window = resolve("middle_out:sure=0.6,alike=0.4,back=0.1")(step)
    for b in range(4):
        peak, left, alone = step.probs[b].amax(-1), masks(step, b), []
        sure = {i for i in left if peak[i] > 0.6}
        commit = set(sure)
        for run in plain_runs(set(left) - sure):
            n = len(run)
            like = [i for i in alone if F.cosine_similarity(
                step.probs[b, i], step.probs[b, run[0]], dim=0) >= 0.4]
            if n > 1 or not like:
                commit.add(max(run[(n - 1) // 2:n // 2 + 1], key=lambda i: peak[i]))
            alone += run * (n == 1)
        for i, token in enumerate(tokens[b].tolist()):
            doubtful = token != MASK and step.probs[b, i, token] < 0.1
            assert window[b, i] == (step.proposal[b, i] if i in commit else
                                    MASK if doubtful else token)
            taken += doubtful
    assert taken


def test_middle_out_takes_one_of_each_pair_of_copies():
    """Places between settled ones: of two choices that look the same, one after the other."""
    def look(tokens):
        logits = 9.0 * F.one_hot(torch.arange(9) % 10, 20).double().expand(len(tokens), -1, -1)
        logits = logits.clone()
        for at, words in ((1, (3, 4)), (3, (5, 6)), (5, (3, 4)), (7, (5, 6))):
            logits[:, at] = 9.0 * F.one_hot(torch.tensor(words), 20).sum(0)
        return logits
    rule, window = resolve("middle_out"), torch.full((1, 9), MASK)
    out = traced(stateless(look), window, small_config(), rule, 1.0)
    left = [(record.tokens[0] == MASK).nonzero()[:, 0].tolist() for record in out.trace]
    assert len(left) == 2 and left[1] == [] and len(set(left[0]) & {1, 5}) == 1
    assert len(set(left[0]) & {3, 7}) == 1


@pytest.mark.parametrize("case", range(10))
def test_punt(case):
    """The masks in the order of their peaks, halved: the second half, tested with the first, and
    then each half of its own, in one look together."""
    rng = random.Random(case)
    tokens, given = random_window(rng, 1, 12, mask=0.8)
    looks, words, bound = [], scripted(case), rng.choice([0.3, 1, 3])
    step = step_on(tokens, given, lambda tokens: looks.append(tokens.clone()) or words(tokens))
    answer = resolve(f"punt:{bound}")(step)
    order = sorted(masks(step, 0), key=lambda i: -step.probs[0, i].max())
    kept, parts = set(order), [order]
    size = 2 ** math.ceil(math.log2(len(order)))
    while size > 1:
        size //= 2
        parts = [half for part in parts for half in (part[:size], part[size:])]
        anchors, tested = ({i for part in parts[k::2] for i in part if i in kept} for k in (0, 1))
        window = [step.proposal[0, i].item() if i in anchors else tokens[0, i].item()
                  for i in range(12)]
        assert looks.pop(1).tolist() == [window]
        logits = words(torch.tensor([window]))[0]
        logits[:, MASK] = -math.inf
        now, before = logits.softmax(-1).tolist(), step.probs[0].tolist()
        for i in tested:
            moved = sum(p * math.log(p / q) for p, q in zip(before[i], now[i]) if p > 0)
            kept -= {i} if moved > bound else set()
    assert chosen(answer, 0) == kept and len(looks) == 1


def test_punt_commits_one_of_each_pair_and_then_the_others():
    """Place i says what place i + 4 is, and that what i is: one token of 8, shifted by 8."""
    def look(tokens):
        logits = torch.zeros(*tokens.shape, 20, dtype=torch.double)
        logits[:, :4, 8:], logits[:, 4:, :8], logits[:, 4:, 16:] = -50.0, -50.0, -50.0
        other = tokens.roll(4, 1)
        return torch.where((other != MASK)[..., None],
                           50.0 * F.one_hot((other + 8) % 16, 20), logits)
    out = traced(stateless(look), torch.full((50, 8), MASK), small_config(), resolve("punt"), 1.0)
    assert (out.tokens[:, 4:] == out.tokens[:, :4] + 8).all()
    assert out.iterations.tolist() == [2] * 50 and out.passes.tolist() == [4 + 3] * 50
    first = out.trace[0].tokens != MASK
    assert (first[:, :4] ^ first[:, 4:]).all()


# ---------------------------------------------------------------- rules that remember

def settling(seed, W, rate=0.6):
    """A look whose answers move less and less from call to call, later at some positions."""
    g = torch.Generator().manual_seed(seed)
    end, way = 3 * torch.randn(2, 1, W, 20, generator=g, dtype=torch.double)
    calls, late = itertools.count(), torch.rand(W, 1, generator=g) * 4
    return lambda tokens: end + way * rate ** (next(calls) - late).clamp(min=0)


@pytest.mark.parametrize("case", range(10))
def test_klass(case):
    rng = random.Random(case)
    tokens, given = random_window(rng, 1, 30)
    look, history, memory, seen, picked = settling(case, 30), rng.randint(1, 3), {}, [], 0
    rule = resolve(f"klass:threshold=0.5,bound=0.05,history={history}")
    for iteration in range(10):
        step = step_on(tokens, given, look, iteration, memory)
        seen.append(step.probs[0].tolist())
        pairs = lambda t, i: zip(seen[t][i], seen[t - 1][i])
        kl = lambda t, i: sum(p * math.log(p / q) for p, q in pairs(t, i) if p > 0)
        last = range(iteration - history + 1, iteration + 1)
        expected = {i for i in range(30) if iteration >= history and step.confidence[0, i] > 0.5
                    and all(kl(t, i) < 0.05 for t in last)}
        assert chosen(rule(step), 0) == expected
        picked += 0 < len(expected) < (step.confidence > 0.5).sum()
    assert picked, "the bound decides in some iteration"


@pytest.mark.parametrize("case", range(5))
def test_blocks(case):
    step, size = random_step(case, W=13), random.Random(case).randint(1, 14)
    window = step.commit(resolve(f"blocks:size={size},threshold=0.4")(step))
    for b in range(4):
        left = masks(step, b)
        current = [i for i in left if i // size == left[0] // size] if left else []
        sure = {i for i in current if step.confidence[b, i] > 0.4}
        expected = sure or {max(current, key=lambda i: step.confidence[b, i])} if current else set()
        assert chosen(window != step.tokens, b) == expected


# ---------------------------------------------------------------- rules that take back

@pytest.mark.parametrize("case", range(10))
def test_remdm(case):
    rng = random.Random(case)
    steps, eta = rng.randint(2, 9), rng.choice([0, 0.1, 0.5])
    iteration = rng.randrange(steps)
    step = random_step(case, iteration=iteration, generator=torch.Generator().manual_seed(case))
    window = resolve(f"remdm:steps={steps},eta={eta}")(step)
    chance = torch.rand(4, 9, generator=torch.Generator().manual_seed(case)).tolist()
    alpha_t, alpha_s = iteration / steps, (iteration + 1) / steps
    sigma = eta if iteration == 0 else min(eta, (1 - alpha_s) / alpha_t)
    for b, i in itertools.product(range(4), range(9)):
        if step.masked[b, i]:  # equation (6): the chance of a token at a mask
            token = 1 - chance[b][i] <= (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t) + 1e-9
            assert window[b, i] == (step.proposal[b, i] if token else MASK)
        else:
            assert window[b, i] == (MASK if chance[b][i] < sigma else step.tokens[b, i])


@pytest.mark.parametrize("eta", [0, 0.2])
def test_remdm_keeps_the_share_of_masks(eta):
    """Theorem 3.1: after each iteration 1 - alpha is masked, with and without remasking."""
    tokens, given = torch.full((100, 50), MASK), torch.zeros(100, 50, dtype=torch.bool)
    look, rule = lambda tokens: torch.zeros(100, 50, 20), resolve(f"remdm:steps=10,eta={eta}")
    generator, taken_back = torch.Generator().manual_seed(0), 0
    for iteration in range(10):
        new = rule(step_on(tokens, given, look, iteration, generator=generator))
        taken_back += ((new == MASK) & (tokens != MASK)).sum().item()
        tokens = new
        share = (tokens == MASK).float().mean().item()
        assert share == pytest.approx(1 - (iteration + 1) / 10, abs=0.03)
    assert (taken_back > 1000) == (eta > 0) and not (tokens == MASK).any()


@pytest.mark.parametrize("case", range(10))
def test_wino(case):
    tokens, given = random_window(random.Random(case), 4, 12)
    looks, words = [], scripted(case, scale=2.5)
    # as the loop hands it to a rule
    model = lambda tokens: words(tokens).index_fill(-1, torch.tensor(MASK), -torch.inf)
    step = step_on(tokens, given, lambda tokens: looks.append(tokens.clone()) or model(tokens))
    window = resolve("wino:wide=0.4,narrow=0.3")(step)
    assert len(looks) == 2, "one further pass"
    for b in range(4):
        left, row = masks(step, b), tokens[b].tolist()
        sure = [i for i in left if step.confidence[b, i] > 0.4]
        drafts = sure or sorted(left, key=lambda i: -step.confidence[b, i])[:1]
        own = step.probs[b, range(12), row].tolist()
        doubtful = [i for i in range(12) if i not in left and not given[b, i] and own[i] < 0.3]
        draft = [step.proposal[b, i].item() if i in drafts else row[i] for i in range(12)]
        seen = [MASK if i in doubtful else token for i, token in enumerate(draft)]
        assert looks[1][b].tolist() == seen
        logits = model(torch.tensor([seen]))[0]
        logits[:, MASK] = -math.inf
        verdict = {i: logits[i].softmax(-1)[row[i]].item() for i in doubtful}
        failed = sorted((i for i in doubtful if verdict[i] < 0.3), key=verdict.get)
        back = failed[:max(len(drafts) - 1, 0)]
        assert window[b].tolist() == [MASK if i in back else token for i, token in enumerate(draft)]


def test_wino_takes_back_and_still_ends(seed):
    """In no more iterations than there were masks, as each commits more than it takes back."""
    window, _ = random_window(random.Random(seed), 5, 12, mask=0.8)
    look, rule = stateless(scripted(seed, scale=2.5)), resolve("wino:wide=0.4,narrow=0.3")
    out = traced(look, window, small_config(), rule)
    assert (out.iterations <= (window == MASK).sum(1)).all() and not out.left.any()
    assert sum(record.taken_back.sum().item() for record in out.trace) > 0
    assert torch.equal(out.passes, 2 * out.iterations)


# ---------------------------------------------------------------- the end of the response

def ending_at(needed, vocab=20):
    """A look that is sure: of a word (id: position % 10), and of EOS from place needed[b] on."""
    def look(tokens):
        B, W = tokens.shape
        word = torch.arange(W).remainder(10).expand(B, W)
        word = torch.where(torch.arange(W) >= torch.tensor(needed)[:, None], EOS, word)
        return 8.0 * F.one_hot(word, vocab)
    return look


@pytest.mark.parametrize("needed, length", [(1, 6), (4, 6), (5, 10), (8, 10), (9, 14), (40, 24)])
def test_daedal_grows_until_it_sees_the_end(needed, length):
    """6 places, by 4, at most 24: until 2 of the last 3 are EOS."""
    window = torch.full((1, 6), MASK)
    window[0, 1] = 15
    rule = resolve("daedal:by=4,tail=3,longest=24")
    out = traced(stateless(ending_at([needed])), window, small_config(), rule)
    assert out.tokens.shape == (1, length) and out.tokens[0, 1] == 15 and not out.left.any()
    assert out.ends == min(needed, 24) if needed > 1 else out.ends == 2
    assert out.iterations == -(-(length - 6) // 4) + 1, "grown first, and then all is sure"
    for record in out.trace[:-1]:
        assert (record.tokens == MASK).sum() == record.tokens.shape[1] - 1, "none committed yet"


def test_daedal_fills_the_others_with_eos():
    window = torch.full((3, 6), MASK)
    window[2] = 7  # finished: that no end is in view there does not matter
    out = decode(stateless(ending_at([2, 9, 99])), window, small_config(),
                 resolve("daedal:by=4,tail=3,longest=24"))
    assert out.tokens.shape == (3, 14) and out.ends.tolist() == [2, 9, 6]
    assert out.iterations.tolist() == [1, 3, 0] and (out.tokens[0, 2:] == EOS).all()


def test_daedal_grows_no_more_once_something_is_committed():
    """The first example sees its end at once, and no longer when the second has grown."""
    def look(tokens):
        logits = ending_at([2, 9] if tokens.shape[1] == 6 else [99, 9])(tokens)
        logits[0, 0] = torch.arange(20.0) / 20  # never sure of its first place
        return logits
    rule = resolve("daedal:by=4,tail=3,longest=24")
    out = decode(stateless(look), torch.full((2, 6), MASK), small_config(), rule)
    assert out.tokens.shape == (2, 14) and out.iterations[0] == 2
    assert (out.tokens[0, 2:] == EOS).all()


@pytest.mark.parametrize("k", [0, 3, 50])
def test_no_eos_before(k, seed):
    step = random_step(seed, scale=4)
    own, before = step.probs.clone(), step.proposal.clone()
    answer = resolve(f"no_eos_before:k={k},threshold=0.5")(step)
    for b, i in itertools.product(range(4), range(9)):
        p = [0 if token == EOS and i < k else x for token, x in enumerate(own[b, i].tolist())]
        assert step.proposal[b, i] == p.index(max(p))
        assert i < k or step.proposal[b, i] == before[b, i]
        assert answer[b, i] == (max(p) / sum(p) > 0.5)


@pytest.mark.parametrize("k", [0, 6])
def test_no_response_is_shorter_than_k(k):
    """Of a look that says EOS nearly everywhere."""
    eager = lambda tokens: scripted(0)(tokens) + 4 * (torch.arange(20) == EOS)
    out = decode(stateless(eager), torch.full((20, 12), MASK), small_config(),
                 resolve(f"no_eos_before:{k}"))
    assert out.ends.min() == k and out.ends.max() < 12


# ---------------------------------------------------------------- the public code's loop

def public_count(n, total, steps, i):
    """How many of n masks, as the public code finds it: float32, place by place."""
    times = torch.linspace(1, 1e-3, steps + 1)
    r = torch.tensor(n) / torch.tensor(total)
    place = max(min(k for k in range(steps + 1) if times[k] < r), i + 1)
    for k in range(place, steps + 1):
        count = int(n * (1 - times[k] / r)) if k < steps else n
        if count >= 1:
            return count


def public_loop(look, window, threshold, steps):
    """The windows of the public code's loop, most confident first, all masks of a batch at once."""
    tokens, total, windows = window.clone(), (window == MASK).sum().item(), []
    for i in range(steps):
        logits = look(tokens)[0].double()
        logits[..., MASK] = -math.inf
        confidence, proposal = logits.softmax(-1).max(-1)
        places = (tokens == MASK).nonzero().tolist()
        where = [place for place in places if confidence[tuple(place)] > (threshold or 2)]
        if i == steps - 1:
            where = places
        if not where:
            places.sort(key=lambda place: -confidence[tuple(place)])
            where = places[:public_count(len(places), total, steps, i)]
        for b, w in where:
            tokens[b, w] = proposal[b, w]
        windows.append(tokens.clone())
        if not (tokens == MASK).any():
            return windows


@pytest.mark.parametrize("flat", [0, 1])
@pytest.mark.parametrize("case", range(12))
def test_dimple_public_is_the_public_loop(case, flat):
    rng = random.Random(case)
    B, W, steps = rng.choice([1, 3]), rng.randint(2, 10), rng.randint(1, 25)
    threshold = rng.choice([0, 0.5, 0.7])
    window, _ = random_window(rng, B, W, mask=0.9)
    window[:, 0] = MASK
    model, (images, prompt, _) = random_model(case, 0.7), random_inputs(case, B, W)
    rule = resolve(f"dimple_public:threshold={threshold},steps={steps},flat={flat}")
    out = traced(full(model, images, prompt), window, model.config, rule, limit=100)
    trace = torch.stack([record.tokens for record in out.trace])
    for rows in [slice(None)] if flat else [slice(b, b + 1) for b in range(B)]:
        look = full(model, images[rows], prompt[rows])
        windows = public_loop(look, window[rows], threshold, steps)
        assert torch.equal(trace[:len(windows), rows], torch.stack(windows))
        assert out.iterations[rows].max() == len(windows)


@pytest.mark.parametrize("total, steps, left", [
    # n (1 - s / t) is n - s times the masks at the start. Of the last two of 48, at the last time
    # but one, 0.0218: int(2 - 1.047) = 0, so they go together at the last: 47 iterations
    (48, 48, [*range(47, 1, -1), 0]),
    # times 0.75025, 0.5005, 0.25075: int(12 - 9.003), int(10 - 6.006), int(7 - 3.009), all
    (12, 4, [10, 7, 4, 0]),
])
def test_the_schedule_by_hand(total, steps, left):
    look, window = stateless(scripted(0)), torch.full((1, total), MASK)
    rule = resolve(f"dimple_public:threshold=0,steps={steps}")
    out = traced(look, window, small_config(), rule)
    assert [(record.tokens == MASK).sum().item() for record in out.trace] == left


def test_the_schedule_does_not_wait():
    """12 masks in 4 steps: two iterations find one sure position each; the third finds none, goes
    to its own time, 0.25075, not to the first below 10 / 12, and commits int(10 - 3.009)."""
    def look(tokens):
        committed = 12 - (tokens == MASK).sum().item()
        height = 1 + torch.arange(12.0) / 12 + 8 * (torch.arange(12) == committed) * (committed < 2)
        return height[None, :, None] * (torch.arange(20) == 3)
    rule = resolve("dimple_public:threshold=0.9,steps=4")
    out = traced(stateless(look), torch.full((1, 12), MASK), small_config(), rule)
    assert [(record.tokens == MASK).sum().item() for record in out.trace] == [11, 10, 4, 0]


def test_dimple_public_at_random_takes_the_same_counts():
    tokens, counts = [], []
    for rule in ("dimple_public:threshold=0,steps=8", "dimple_public:threshold=0,steps=8,random=1"):
        window = torch.full((2, 30), MASK)
        out = traced(stateless(scripted(3)), window, small_config(), resolve(rule))
        counts.append([(record.tokens == MASK).sum(1).tolist() for record in out.trace])
        tokens.append(out.tokens)
    assert counts[0] == counts[1] and not torch.equal(*tokens)


@pytest.mark.parametrize("case", range(5))
def test_remask(case):
    tokens, given = random_window(random.Random(case), 4, 12)
    step, taken = step_on(tokens, given, scripted(case, scale=2.5)), 0
    window = resolve("remask:0.4")(step)
    for b in range(4):
        left = masks(step, b)
        sure = [i for i in left if step.confidence[b, i] > 0.4]
        drafts = sure or sorted(left, key=lambda i: -step.confidence[b, i])[:1]
        # given ones the loop puts back
        doubtful = [i for i in range(12) if i not in left and step.probs[b, i, tokens[b, i]] < 0.1]
        for i, token in enumerate(tokens[b]):
            wanted = step.proposal[b, i] if i in drafts else MASK if i in doubtful else token
            assert window[b, i] == wanted
        taken += len(doubtful)
    assert taken, "something is taken back"


def test_the_public_loop_on_the_shipped_weights():
    """Batch 1, with the MaskGIT fallback: confident decoding, token for token, pass for pass.
    Over a flattened batch of 32: another thing."""
    model, tokenizer, _ = load(SHIPPED)
    scenes = evaluate.Scenes(model.config, tokenizer, 32, torch.device("cpu"))
    public, flat = resolve("dimple_public:0.9"), resolve("dimple_public:threshold=0.9,flat=1")
    for b in range(12):
        one = scenes[b:b + 1]
        mine, theirs = (evaluate.decoded(model, one, rule) for rule in (confident(0.9), public))
        assert torch.equal(mine.tokens, theirs.tokens) and torch.equal(mine.passes, theirs.passes)
    mine, theirs = (evaluate.decoded(model, scenes[:32], rule) for rule in (confident(0.9), flat))
    assert (mine.tokens != theirs.tokens).any(1).sum() >= 3
    assert theirs.passes.max() > mine.passes.max()
