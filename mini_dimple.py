"""Mini-Dimple: discrete-diffusion multimodal LLM, after Dimple (arXiv 2505.16990), in one file.

A picture and an instruction go in, a caption comes out, several tokens per pass:

    [visual tokens][prompt][response window]   -- one transformer, causal in phase 1,
                                                  full attention in phase 2

Read top to bottom, in the paper's order: config, what may be passed in, the block that all
transformers share, vision encoder, projector, the model, autoregressive loss, diffusion loss,
schedule, looks, decoding, checkpoints.
Shapes: B batch, V visual tokens, P prompt tokens, W response window, T = V + P + W positions,
D width, nh heads, hd = D / nh.
"""
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

MAX_POSITIONS = 4096  # length of the rotary table: prefix + window may not be longer


# ---------------------------------------------------------------- config

@dataclass
class Config:
    vocab_size: int
    eos_id: int              # ends the response and fills the window after it
    mask_id: int             # [MASK], the absorbing state of the forward process
    image_px: int = 48
    patch_px: int = 8        # 2x2 patches merge into one visual token: here 9 visual tokens of
                             # 16 x 16 px
    vit_width: int = 128
    vit_layers: int = 1
    width: int = 128
    layers: int = 4
    heads: int = 4
    prompt_tokens: int = 3   # prompts are padded on the left to this length
    prompt: str = "describe the image"  # the most frequent one in training
    window: int = 48         # longest response window trained, in tokens, EOS included
    phase: str = "diffusion"  # the phase the weights come out of: "ar" or "diffusion"
    trained_on: str = "tiny"  # the toy set of that preset, or "pictures": one's own
    prefix_mask: bool = False  # diffusion: what precedes the last prompt token cannot see the
                               # response (LaViDa)


PRESETS = {
    "tiny": {},  # 1 M parameters, for 2 CPU cores
    "small": dict(image_px=96, vit_width=256, vit_layers=4, width=384, layers=6, heads=8,
                  window=144),  # one 8 GB GPU
}


# ---------------------------------------------------------------- the door

def expect(name, value, dtype, shape, device=None, ids=None):
    """The door of the Python interface: raises ValueError, with what was expected and what came,
    unless `value` is a `dtype` tensor of this shape (a letter stands for any size from 1 on), on
    `device`, and, if `ids` is given, of ids below it."""
    tensor = isinstance(value, torch.Tensor)
    if not (tensor and value.dtype == dtype and device in (None, value.device)
            and value.dim() == len(shape)
            and all(n > 0 and want in (n, str(want)) for n, want in zip(value.shape, shape))):
        place = f" on {device}" if device else ""
        wanted = f"a {dtype} tensor ({', '.join(map(str, shape))}){place}"
        came = type(value).__name__
        if tensor:
            came = f"{value.dtype} {tuple(value.shape)} on {value.device}"
        raise ValueError(f"{name}: expected {wanted}, got {came}")
    if ids and not value.is_meta and not ((value >= 0) & (value < ids)).all():
        raise ValueError(f"{name}: expected ids from 0 to {ids - 1}, "
                         f"got {value.min()} to {value.max()}")


# ------------------------------------------------ transformer block (shared by vision and language)

def rotary_table(positions, head_dim):
    """cos and sin of the rotary angles, each (positions, head_dim / 2).

    The base is 100, not the usual 10,000: with at most some 200 positions, more channels than one
    turn noticeably."""
    frequencies = 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(positions)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x, rotary):
    """Turn each pair of channels (i, i + hd / 2) of x (B, nh, T, hd) by its position's angle."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned.to(x.dtype)  # autocast: back to bf16


def rms_norm(width):
    return nn.RMSNorm(width, eps=1e-6)  # stated, as PyTorch's default depends on the dtype


class Block(nn.Module):
    """Attention, then SwiGLU, each on the RMS-normalised residual stream; no biases."""

    def __init__(self, width, heads):
        super().__init__()
        hidden = 2 * width  # three times the width costs more and gains nothing on the toy set
        self.heads = heads
        self.attention_norm = rms_norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = rms_norm(width)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, causal=False, rotary=None, past=None):
        """x (B, T, D) -> same shape, and this layer's keys and values (B, nh, past + T, hd).

        `past` holds keys and values of earlier positions, which every position of x may see; with
        `past` and `causal`, x must be a single position."""
        B, T, D = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, nh, T, hd)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal and past is None)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up), (k, v)


# ----------------------------------------------- vision encoder and projector (paper: architecture)

class ViT(nn.Module):
    """Images -> one feature vector per patch."""

    def __init__(self, config):
        super().__init__()
        self.patch_px = config.patch_px
        self.embed = nn.Linear(3 * config.patch_px ** 2, config.vit_width, bias=False)
        patches = (config.image_px // config.patch_px) ** 2
        # as all matrices, drawn anew by Dimple
        self.positions = nn.Parameter(torch.randn(patches, config.vit_width))
        self.blocks = nn.ModuleList(
            Block(config.vit_width, config.heads) for _ in range(config.vit_layers))

    def forward(self, images):
        """images (B, 3, H, H), uint8 -> (B, (H / patch_px)^2, vit_width), patches row by row."""
        pixels = images.to(self.positions.dtype) / 127.5 - 1
        patches = F.unfold(pixels, self.patch_px, stride=self.patch_px).transpose(1, 2)
        x = self.embed(patches) + self.positions
        for block in self.blocks:
            x, _ = block(x)
        return x


class Projector(nn.Module):
    """Concatenate each 2x2 block of patch features, and a 2-layer MLP into the language model's
    width."""

    def __init__(self, config):
        super().__init__()
        self.norm = rms_norm(4 * config.vit_width)
        self.up = nn.Linear(4 * config.vit_width, config.width, bias=False)
        self.down = nn.Linear(config.width, config.width, bias=False)

    def forward(self, patches):
        """patches (B, n * n, vit_width) -> visual tokens (B, n * n / 4, D)."""
        B, N, C = patches.shape
        n = math.isqrt(N)
        x = patches.view(B, n // 2, 2, n // 2, 2, C).transpose(2, 3).reshape(B, N // 4, 4 * C)
        return self.down(F.gelu(self.up(self.norm(x))))


# ---------------------------------------------------------------- the model

class Dimple(nn.Module):
    """The same weights read causally (phase 1) or in both directions (phase 2). No timestep
    embedding: the model can see how many masks there are."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vit = ViT(config)
        self.projector = Projector(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = rms_norm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        cos, sin = rotary_table(MAX_POSITIONS, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def check(self, images, prompt, response=None, ids=True):
        """Raises ValueError, with what was expected and what came, for inputs that the model cannot
        read; `ids`: look at their values, too, for which a GPU must be waited for."""
        config, device = self.config, self.embedding.weight.device
        top = config.vocab_size if ids else None
        expect("images", images, torch.uint8, ("B", 3, config.image_px, config.image_px), device)
        expect("prompt", prompt, torch.long, (len(images), "P"), device, top)
        if response is not None:
            expect("response", response, torch.long, (len(images), "W"), device, top)
            visual = (config.image_px // config.patch_px // 2) ** 2
            positions = visual + prompt.shape[1] + response.shape[1]
            if positions > MAX_POSITIONS:
                raise ValueError(f"expected at most {MAX_POSITIONS} positions of picture, prompt "
                                 f"and window, got {positions}")

    def prefix(self, images, prompt):
        """images (B, 3, H, H) uint8, prompt (B, P) ids -> embeddings of [visual tokens][prompt]
        (B, V + P, D)."""
        return torch.cat([self.projector(self.vit(images)), self.embedding(prompt)], dim=1)

    def transformer(self, x, causal, past=None):
        """x (B, T, D) -> hidden states (B, T, D) and the cache: keys and values of each layer,
        `past` included."""
        start = 0 if past is None else past[0][0].shape[2]
        rotary = self.cos[start:start + x.shape[1]], self.sin[start:start + x.shape[1]]
        cache = []
        for i, block in enumerate(self.blocks):
            x, kv = block(x, causal, rotary, None if past is None else past[i])
            cache.append(kv)
        return self.norm(x), cache

    def score(self, prefix, response, causal, past=None):
        """Logits (B, W, vocab) for the response (B, W), and the cache.

        Token shift: the state at position i scores token i + 1, in both phases, so that what
        phase 1 learnt carries over; response[:, 0] is scored from the last position of the prefix.
        With `past`, `prefix` is just that last position. With the config's `prefix_mask`, what
        precedes that position sees itself alone."""
        W = response.shape[1]
        if self.config.prefix_mask and not causal and past is None:
            _, past = self.transformer(prefix[:, :-1], causal)
            prefix = prefix[:, -1:]
        x = torch.cat([prefix, self.embedding(response)], dim=1)
        hidden, cache = self.transformer(x, causal, past)
        return self.head(hidden[:, -W - 1:-1]), cache

    def forward(self, images, prompt, response, causal):
        """Logits (B, W, vocab) that score the response (B, W); `causal` chooses the phase's
        attention."""
        self.check(images, prompt, response, ids=not self.training)
        return self.score(self.prefix(images, prompt), response, causal)[0]


# -------------------------------- training, phase 1: autoregressive loss (paper: AR-then-diffusion)

def token_nll(logits, response):
    """-log p of each response token: (B, W, vocab), (B, W) -> (B, W)."""
    nll = F.cross_entropy(logits.flatten(0, 1), response.flatten(), reduction="none")
    return nll.view_as(response)


def ar_loss(model, images, prompt, response):
    """Next-token cross-entropy under the causal mask: the mean over response tokens up to the first
    EOS, included.

    images (B, 3, H, H) uint8, prompt (B, P), response (B, W) with at least one EOS per row ->
    scalar, nats per token."""
    nll = token_nll(model(images, prompt, response, causal=True), response)  # (B, W)
    eos = (response == model.config.eos_id).long()
    scored = eos.cumsum(1) - eos == 0  # no EOS strictly before
    return (nll * scored).sum() / scored.sum()


# --------------------------------------------------------- training, phase 2: masked diffusion loss

EPS = 1e-3  # the smallest t: keeps 1 / t bounded


def draw_t(B, device, generator=None):
    """One t ~ U(EPS, 1] per example (B,), stratified: example i draws from slice i of B equal ones,
    so that each batch spans all levels. Batches are shuffled, so every example meets every
    level."""
    u = (torch.arange(B, device=device) + torch.rand(B, device=device, generator=generator)) / B
    return 1 - (1 - EPS) * u


def forward_process(response, t, mask_id, generator=None):
    """Each token of the response (B, W) becomes [MASK] with probability t (B,). Returns noisy
    (B, W), masked (B, W)."""
    masked = torch.rand(response.shape, device=response.device, generator=generator) < t[:, None]
    return response.masked_fill(masked, mask_id), masked


WEIGHTINGS = ("flat", "example", "elbo")


def weigh(nll, masked, t, weighting):
    """Reduce the masked tokens' nll (B, W) to a scalar, by one of three readings of the objective:

    "elbo"     the paper: (1 / t) * sum over masked tokens / W, mean over examples (the ELBO of
               absorbing diffusion)
    "example"  the public code as run: mean over each example's masked tokens, then over examples
    "flat"     mean over all masked tokens of the batch: favours heavily masked examples
    An example with no masked token counts 0."""
    nll = nll * masked
    if weighting == "elbo":
        return (nll.sum(1) / t).mean() / nll.shape[1]
    if weighting == "example":
        return (nll.sum(1) / masked.sum(1).clamp(min=1)).mean()
    if weighting == "flat":
        return nll.sum() / masked.sum().clamp(min=1)
    raise ValueError(f"weighting {weighting!r}: choose one of {', '.join(WEIGHTINGS)}")


def diffusion_loss(model, images, prompt, response, weighting="flat", complementary=False,
                   generator=None):
    """Cross-entropy of the masked response tokens under full attention; image and prompt are never
    masked.

    Shapes as in `ar_loss`. `complementary` enters each example a second time with the complement of
    its mask, so that every response token is supervised once ("dual" masking; LaViDa's
    complementary masking). Returns a scalar, nats per token; raises ValueError for an unknown
    weighting."""
    t = draw_t(len(response), response.device, generator)
    noisy, masked = forward_process(response, t, model.config.mask_id, generator)
    if complementary:
        noisy = torch.cat([noisy, response.masked_fill(~masked, model.config.mask_id)])
        masked, t = torch.cat([masked, ~masked]), torch.cat([t, (1 - t).clamp(min=EPS)])
        images, prompt, response = (
            images.repeat(2, 1, 1, 1), prompt.repeat(2, 1), response.repeat(2, 1))
    logits = model(images, prompt, noisy, causal=False)  # (B, W, vocab)
    return weigh(token_nll(logits, response), masked, t, weighting)


# ---------------------------------------------------------------- schedule

def schedule(step, ar_steps, diffusion_steps, warmup=100):
    """Which phase a step (from 0) is in, and the factor on the peak learning rate:
    ("ar" | "diffusion", float).

    Each phase warms up linearly to the peak (over `warmup` steps, at most a fifth of the phase),
    and from there falls linearly to 0, which it would reach one step after its last."""
    if step < ar_steps:
        phase, at, steps = "ar", step, ar_steps
    else:
        phase, at, steps = "diffusion", step - ar_steps, diffusion_steps
    warmup = max(1, min(warmup, steps // 5))
    return phase, min((at + 1) / warmup, (steps - at) / (steps - warmup + 1))


# ---------------------------------------------------------------- looks (paper: prefilling)

@torch.no_grad()
def full(model, images, prompt, causal=False):
    """A look that runs the whole sequence in every pass; `causal`: as phase 1 reads it.

    images (B, 3, H, H) uint8, prompt (B, P) ids -> a function, tokens (B, W) -> logits
    (B, W, vocab). For one decoding. Raises ValueError for other pictures, prompts or windows."""
    model.check(images, prompt)
    prefix = model.prefix(images, prompt)  # (B, V + P, D)

    def look(tokens):
        model.check(images, prompt, tokens, ids=False)
        return model.score(prefix, tokens, causal)[0]
    return look


@torch.no_grad()
def prefilled(model, images, prompt):
    """Prefilling: a look that runs the prefix once, in its first pass, with the window as it is
    then in view, and keeps its keys and values. They go stale as tokens are committed. Shapes,
    errors: as `full`."""
    model.check(images, prompt)
    prefix, past = model.prefix(images, prompt), None

    def look(tokens):
        nonlocal prefix, past
        model.check(images, prompt, tokens, ids=False)
        logits, cache = model.score(prefix, tokens, causal=False, past=past)
        if past is None:
            # keep what precedes the last prompt token, which the token shift needs again
            kept = prefix.shape[1] - 1
            past = [(k[:, :, :kept], v[:, :, :kept]) for k, v in cache]
            prefix = prefix[:, -1:]  # from here on
        return logits
    return look


# ------------------------------------------- decoding (paper: confident decoding, structure priors)

def exclude(logits, mask_id):
    """A copy of the logits (..., vocab) in which [MASK] cannot be chosen; in float32, where bf16
    has two values from 0.99 to 1."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    logits[..., mask_id] = -torch.inf
    return logits


def draw(logits, temperature, generator=None):
    """A token from softmax(logits / temperature): logits (B, W, vocab) -> ids (B, W)."""
    shifted = logits - logits.amax(-1, keepdim=True)  # no overflow at tiny temperatures
    sharp = (shifted / temperature).softmax(-1)
    return torch.multinomial(sharp.flatten(0, 1), 1, generator=generator).view(logits.shape[:2])


def response_ends(tokens, given, eos_id):
    """Where each response ends (B,): its first EOS, but not before its last given word; W if there
    is none.

    A given EOS is no word: a window whose tail is fixed to EOS ends where the tail begins, or
    earlier."""
    W = tokens.shape[1]
    position = torch.arange(W, device=tokens.device)
    # (B, 1) just past the last given word
    after = (given * (tokens != eos_id) * (position + 1)).amax(1, keepdim=True)
    return torch.where((tokens == eos_id) & (position >= after), position, W).amin(1)


class Record(NamedTuple):
    """What one iteration did, for traces: (B, W) each, or (B, W, 3); of the window after it."""
    tokens: torch.Tensor        # ids after it
    proposal: torch.Tensor      # ids that the rule went by
    confidence: torch.Tensor    # their probabilities
    words: torch.Tensor         # the three likeliest ids of each position
    probs: torch.Tensor         # and their probabilities
    by_rule: torch.Tensor       # bool: committed, or written otherwise, as the rule said
    at_least_one: torch.Tensor  # bool: committed as the most confident, as the rule said none
    by_limit: torch.Tensor      # bool: committed because the passes were used up
    taken_back: torch.Tensor    # bool: [MASK] again

    @classmethod
    def of(cls, step, before, tokens, at_limit, probs, words):
        """The record of a step that turned the window `before` (B, W) into `tokens` (B, W')."""
        fit = lambda x, value=0: F.pad(
            x, (0, 0) * (x.dim() - 2) + (0, tokens.shape[1] - x.shape[1]), value=value)
        unfinished = (before == step.mask_id).any(1, keepdim=True)
        before = fit(before, step.mask_id)
        written = (tokens != before) & (tokens != step.mask_id) & unfinished
        fallback = fit(step.at_least_one) & written
        return cls(tokens, fit(step.proposal), fit(step.confidence), fit(words), fit(probs),
                   written & ~fallback & (not at_limit), fallback & (not at_limit),
                   written & at_limit, (tokens == step.mask_id) & (before != step.mask_id))


@dataclass
class Decoded:
    tokens: torch.Tensor      # (B, W) ids, no [MASK] left
    iterations: torch.Tensor  # (B,) calls of the rule that each example needed; the limit's pass
                              # counts as one
    passes: torch.Tensor      # (B,) runs of the model, the rule's own looks included
    left: torch.Tensor        # (B,) masks that were filled by the pass that reached the limit
    ends: torch.Tensor        # (B,) tokens before the response's EOS
    trace: list               # of Records, one per iteration, if asked for

    def response(self, b):
        """Ids of example b's response, its EOS and what follows left out."""
        return self.tokens[b, :self.ends[b]].tolist()


class Step:
    """What a rule sees of one iteration: B examples, W positions. All of it is the rule's own, to
    read and to change.

    iteration, limit  0, 1, 2, ...; the passes after which all that is left is committed
    tokens            (B, W) ids, mask_id where nothing is committed
    masked, given     (B, W) bool; given: fixed from the start (structure prior)
    logits, probs     (B, W, vocab), [MASK] excluded; of committed positions too
    proposal          (B, W) ids, the token that would be committed
    confidence        (B, W) probability of the proposal, before temperature
    look              tokens (B, W') -> logits, [MASK] excluded: one more pass of the model, on any
                      window; it counts
    memory            a dict that lives as long as the decoding, empty at its start
    generator         for random numbers, so that --seed repeats them; mask_id, eos_id: ids
    at_least_one      (B, W) bool: what the last `commit` added where nothing was named
    """

    def __init__(self, iteration, limit, tokens, given, config, look, memory, temperature,
                 generator):
        self.iteration, self.limit, self.memory, self.look = iteration, limit, memory, look
        self.mask_id, self.eos_id = config.mask_id, config.eos_id
        self.tokens, self.masked, self.given = (
            tokens.clone(), tokens == config.mask_id, given.clone())
        self.temperature, self.generator = temperature, generator
        self.at_least_one = torch.zeros_like(given)  # what the last `commit` added
        self.score(look(tokens))

    def score(self, logits):
        """Go by these logits (B, W, vocab) from here on: sets logits, probs, proposal and
        confidence."""
        self.logits = exclude(logits, self.mask_id)
        self.probs = self.logits.softmax(-1)
        if self.temperature:
            self.propose(draw(self.logits, self.temperature, self.generator))
        else:
            self.propose(self.probs.argmax(-1))

    def propose(self, proposal):
        """Go by this proposal (B, W) from here on, and by its confidence."""
        self.proposal = proposal
        self.confidence = self.probs.gather(-1, proposal[..., None]).squeeze(-1)

    def commit(self, where):
        """The next window: the proposals at the masks of `where` (B, W) bool; in an example without
        any there, the most confident one (paper: confident decoding)."""
        where = where & self.masked
        confidence = self.confidence.masked_fill(~self.masked, -torch.inf)
        best = confidence.argmax(1, keepdim=True)  # (B, 1)
        fallback = torch.zeros_like(where).scatter(1, best, ~where.any(1, keepdim=True))
        self.at_least_one = fallback & self.masked  # finished examples have none
        return torch.where(where | self.at_least_one, self.proposal, self.tokens)


def confident(threshold):
    """Confident decoding (the paper's rule): commit every position whose confidence exceeds the
    threshold; `Step.commit` sees to it that there is one. Raises ValueError for a threshold outside
    (0, 1]; at 1, exactly one is committed at a time."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: must be above 0 and at most 1")
    return lambda step: step.confidence > threshold


@torch.no_grad()
def decode(look, window, config, rule=confident(0.9), temperature=0.0, generator=None, limit=None,
           trace=False):
    """Fill the [MASK]s of the window (B, W), a few per pass; tokens that are not [MASK] are given,
    and stay (structure prior).

    `look`: tokens (B, W) -> logits (B, W, vocab), made for this decoding. `rule`: Step -> positions
    to commit (B, W) bool, or the next window itself, ids (B, W'): it may take tokens back, write
    others, and grow or shrink the window at its end; it cannot insert before a given token, as
    these are put back at their places. An example without a [MASK] is finished and stays as it is,
    EOS where the window grows. Ends when all are, or in the pass that reaches `limit`, which
    commits all that is left: by default twice W, or twice what the window has grown to in the first
    2 W passes. Returns Decoded. Raises ValueError for what cannot be decoded with."""
    check_decoding(look, window, config, temperature, limit)
    tokens, given, memory = window.clone(), window != config.mask_id, {}
    zeros = window.new_zeros(3, len(window))
    (iterations, passes, left), iteration, looks, records = zeros, 0, 0, []
    longest = window.shape[1]

    def counted(tokens):
        nonlocal looks
        logits = exclude(look(tokens), config.mask_id)
        looks += 1
        mark(look)
        return logits

    # the loop's only synchronisation
    while (unfinished := (tokens == config.mask_id).any(1)).any():
        before, masked, looks_before = tokens, tokens == config.mask_id, looks
        if looks < 2 * window.shape[1]:  # a window that grows gets more passes, but not for ever
            longest = max(longest, tokens.shape[1])
        most = limit or 2 * longest
        step = Step(iteration, most, tokens, given, config, counted, memory, temperature, generator)
        likeliest = step.probs.topk(3) if trace else None  # before the rule may write into them
        at_limit = looks >= most
        answer = masked if at_limit else rule(step)
        if answer.dtype == torch.bool:
            step.tokens, step.masked = tokens, masked  # its own may hold anything by now
            answer = step.commit(answer)
        tokens, given = put_back(answer, tokens, given, unfinished, config)
        iterations, passes = iterations + unfinished, passes + unfinished * (looks - looks_before)
        left, iteration = left + masked.sum(1) * at_limit, iteration + 1
        if trace:
            records.append(Record.of(step, before, tokens, at_limit, *likeliest))
    ends = response_ends(tokens, given, config.eos_id)
    return Decoded(tokens, iterations, passes, left, ends, records)


def check_decoding(look, window, config, temperature, limit):
    """Raises ValueError for what `decode` cannot start with."""
    expect("window", window, torch.long, ("B", "W"), ids=config.vocab_size)
    if not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: expected a number, 0 or more, got {temperature!r}")
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise ValueError(f"limit: expected a number of passes, 1 or more, got {limit!r}")
    if getattr(look, "used", False):
        raise ValueError("look: it has decoded a window already, and may keep what it saw of it; "
                         "make a new one for each decoding")


def mark(look):
    """Note that the look has seen a window: it belongs to this decoding."""
    with suppress(AttributeError):  # a bound method cannot be marked
        look.used = True


def put_back(new, tokens, given, unfinished, config):
    """What a rule's next window `new` (B, W') may not touch, put back -> tokens (B, W''), given
    (B, W'').

    Given tokens and finished examples stay as in `tokens` (B, W). The window is cut no shorter than
    they are."""
    keep = given | ~unfinished[:, None]
    if new.shape[1] < tokens.shape[1]:
        needed = (keep & (given | (tokens != config.eos_id))).any(0).nonzero()[-1:].sum().item() + 1
        new = F.pad(new, (0, max(0, needed - new.shape[1])), value=config.eos_id)
    if new.shape[1] != tokens.shape[1]:
        longer = 0, new.shape[1] - tokens.shape[1]  # F.pad cuts where this is negative
        tokens, given = F.pad(tokens, longer, value=config.eos_id), F.pad(given, longer)
        keep = given | ~unfinished[:, None]
    return torch.where(keep, tokens, new), given


@torch.no_grad()
def decode_ar(model, images, prompt, length):
    """Greedy left-to-right decoding with a KV cache, one token per pass: the baseline, for weights
    of phase 1.

    Stops when every example has its EOS or `length` tokens; tokens after the EOS are EOS. Returns
    Decoded. Raises ValueError for inputs that the model cannot read."""
    config = model.config
    if not (isinstance(length, int) and length >= 1):
        raise ValueError(f"length: expected a number of tokens, 1 or more, got {length!r}")
    tokens = torch.full((len(prompt), length), config.eos_id, device=model.embedding.weight.device)
    model.check(images, prompt, tokens)
    hidden, cache = model.transformer(model.prefix(images, prompt), causal=True)
    finished = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for i in range(length):
        logits = exclude(model.head(hidden[:, -1]), config.mask_id)  # (B, vocab)
        tokens[:, i] = logits.argmax(-1).masked_fill(finished, config.eos_id)
        finished |= tokens[:, i] == config.eos_id
        if finished.all() or i == length - 1:
            break
        last = model.embedding(tokens[:, i:i + 1])
        hidden, cache = model.transformer(last, causal=True, past=cache)
    ends = response_ends(tokens, torch.zeros_like(tokens, dtype=torch.bool), config.eos_id)
    passes = (ends + 1).clamp(max=length)
    return Decoded(tokens, passes, passes, torch.zeros_like(passes), ends, [])


# ---------------------------------------------------------------- checkpoints

FORMAT = "mini-dimple checkpoint 1"


def checkpoint(model, tokenizer):
    """What `torch.save` writes and `load` reads: weights, config and tokenizer."""
    return {"format": FORMAT, "config": asdict(model.config), "merges": tokenizer.merges,
            "weights": model.state_dict()}


def read_state(path, wanted, device="cpu"):
    """The dict in a file written by `torch.save`. Raises OSError if it cannot be read, ValueError
    if it is damaged, holds more than tensors and plain values, or is of another format than
    `wanted`."""
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location=device, weights_only=True)
            found = dict(state)["format"]
        except Exception as error:  # foreign and damaged files fail in many ways
            raise ValueError(f"{path}: damaged, or not written by Mini-Dimple") from error
    if found != wanted:
        raise ValueError(f"{path}: its format is {found!r}; this code reads {wanted!r}")
    return state


def load(path, device="cpu"):
    """(model, tokenizer) from a checkpoint written by train.py. Raises OSError, ValueError as
    `read_state`."""
    # our own file, the standard library alone; the checkpoint carries the merges
    from tokenizer import Tokenizer
    state = read_state(path, FORMAT, device)
    try:
        model, tokenizer = Dimple(Config(**state["config"])), Tokenizer(state["merges"])
        model.load_state_dict(state["weights"])
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ValueError("the vocabulary's size differs")
    except Exception as error:  # a checkpoint of our format with contents that do not fit together
        raise ValueError(f"{path}: config, weights and tokenizer do not fit this code "
                         f"({(str(error) or repr(error)).splitlines()[0]})") from error
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: damaged weights: {broken[0]} holds numbers that are not finite")
    return model.to(device).eval(), tokenizer
