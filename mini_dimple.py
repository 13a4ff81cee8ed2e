"""Mini-Dimple: discrete-diffusion multimodal LLM, after Dimple (arXiv 2505.16990), in one file.

A picture and an instruction go in, a caption comes out, several tokens per pass:

    [visual tokens][prompt][response window]   -- one transformer, causal in phase 1, full attention in phase 2

Read top to bottom, in the paper's order: config, the block that all transformers share, vision encoder, projector, the
model, autoregressive loss, diffusion loss, schedule, decoding, checkpoints. Shapes: B batch, V visual tokens, P prompt tokens, W response window,
T = V + P + W positions, D width, nh heads, hd = D / nh.
"""
import math
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
    patch_px: int = 8        # 2x2 patches merge into one visual token: here 9 visual tokens of 16 x 16 px
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
    prefix_mask: bool = False  # diffusion: what precedes the last prompt token cannot see the response (LaViDa)


PRESETS = {
    "tiny": {},  # 1 M parameters, for 2 CPU cores
    "small": dict(image_px=96, vit_width=256, vit_layers=4, width=384, layers=6, heads=8, window=144),  # one 8 GB GPU
}


# ---------------------------------------------------------------- transformer block (shared by vision and language)

def rotary_table(positions, head_dim):
    """cos and sin of the rotary angles, each (positions, head_dim / 2).

    The base is 100, not the usual 10,000: with at most some 200 positions, more channels than one turn noticeably."""
    frequencies = 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(positions)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x, rotary):
    """Turn each pair of channels (i, i + hd / 2) of x (B, nh, T, hd) by its position's angle."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)  # autocast: back to bf16


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

        `past` holds keys and values of earlier positions, which every position of x may see; with `past` and
        `causal`, x must be a single position."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, nh, T, hd)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal and past is None)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up), (k, v)


# ---------------------------------------------------------------- vision encoder and projector (paper: architecture)

class ViT(nn.Module):
    """Images -> one feature vector per patch."""

    def __init__(self, config):
        super().__init__()
        self.patch_px = config.patch_px
        self.embed = nn.Linear(3 * config.patch_px ** 2, config.vit_width, bias=False)
        patches = (config.image_px // config.patch_px) ** 2
        self.positions = nn.Parameter(torch.randn(patches, config.vit_width))  # as all matrices, drawn anew by Dimple
        self.blocks = nn.ModuleList(Block(config.vit_width, config.heads) for _ in range(config.vit_layers))

    def forward(self, images):
        """images (B, 3, H, H), uint8 -> (B, (H / patch_px)^2, vit_width), patches row by row."""
        pixels = images.to(self.positions.dtype) / 127.5 - 1
        x = self.embed(F.unfold(pixels, self.patch_px, stride=self.patch_px).transpose(1, 2)) + self.positions
        for block in self.blocks:
            x, _ = block(x)
        return x


class Projector(nn.Module):
    """Concatenate each 2x2 block of patch features, and a 2-layer MLP into the language model's width."""

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
    """The same weights read causally (phase 1) or in both directions (phase 2). No timestep embedding: the model can see
    how many masks there are."""

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

    def prefix(self, images, prompt):
        """images (B, 3, H, H) uint8, prompt (B, P) ids -> embeddings of [visual tokens][prompt] (B, V + P, D)."""
        return torch.cat([self.projector(self.vit(images)), self.embedding(prompt)], dim=1)

    def transformer(self, x, causal, past=None):
        """x (B, T, D) -> hidden states (B, T, D) and the cache: keys and values of each layer, `past` included."""
        start = 0 if past is None else past[0][0].shape[2]
        rotary = self.cos[start:start + x.shape[1]], self.sin[start:start + x.shape[1]]
        cache = []
        for i, block in enumerate(self.blocks):
            x, kv = block(x, causal, rotary, None if past is None else past[i])
            cache.append(kv)
        return self.norm(x), cache

    def score(self, prefix, response, causal, past=None):
        """Logits (B, W, vocab) for the response (B, W), and the cache.

        Token shift: the state at position i scores token i + 1, in both phases, so that what phase 1 learnt carries
        over; response[:, 0] is scored from the last position of the prefix. With `past`, `prefix` is just that last position.
        With the config's `prefix_mask`, what precedes that position sees itself alone."""
        W = response.shape[1]
        if self.config.prefix_mask and not causal and past is None:
            _, past = self.transformer(prefix[:, :-1], causal)
            prefix = prefix[:, -1:]
        hidden, cache = self.transformer(torch.cat([prefix, self.embedding(response)], dim=1), causal, past)
        return self.head(hidden[:, -W - 1:-1]), cache

    def forward(self, images, prompt, response, causal):
        """Logits (B, W, vocab) that score the response (B, W); `causal` chooses the phase's attention."""
        return self.score(self.prefix(images, prompt), response, causal)[0]


# ---------------------------------------------------------------- training, phase 1: autoregressive loss (paper: AR-then-diffusion)

def token_nll(logits, response):
    """-log p of each response token: (B, W, vocab), (B, W) -> (B, W)."""
    return F.cross_entropy(logits.flatten(0, 1), response.flatten(), reduction="none").view_as(response)


def ar_loss(model, images, prompt, response):
    """Next-token cross-entropy under the causal mask: the mean over response tokens up to the first EOS, included.

    images (B, 3, H, H) uint8, prompt (B, P), response (B, W) with at least one EOS per row -> scalar, nats per token."""
    nll = token_nll(model(images, prompt, response, causal=True), response)  # (B, W)
    eos = (response == model.config.eos_id).long()
    scored = eos.cumsum(1) - eos == 0  # no EOS strictly before
    return (nll * scored).sum() / scored.sum()


# ---------------------------------------------------------------- training, phase 2: masked diffusion loss

EPS = 1e-3  # the smallest t: keeps 1 / t bounded


def draw_t(B, device, generator=None):
    """One t ~ U(EPS, 1] per example (B,), stratified: example i draws from slice i of B equal ones, so that
    each batch spans all levels. Batches are shuffled, so every example meets every level."""
    u = (torch.arange(B, device=device) + torch.rand(B, device=device, generator=generator)) / B
    return 1 - (1 - EPS) * u


def forward_process(response, t, mask_id, generator=None):
    """Each token of the response (B, W) becomes [MASK] with probability t (B,). Returns noisy (B, W), masked (B, W)."""
    masked = torch.rand(response.shape, device=response.device, generator=generator) < t[:, None]
    return response.masked_fill(masked, mask_id), masked


WEIGHTINGS = ("flat", "example", "elbo")


def weigh(nll, masked, t, weighting):
    """Reduce the masked tokens' nll (B, W) to a scalar, by one of three readings of the objective:

    "elbo"     the paper: (1 / t) * sum over masked tokens / W, mean over examples (the ELBO of absorbing diffusion)
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


def diffusion_loss(model, images, prompt, response, weighting="flat", complementary=False, generator=None):
    """Cross-entropy of the masked response tokens under full attention; image and prompt are never masked.

    Shapes as in `ar_loss`. `complementary` enters each example a second time with the complement of its mask, so
    that every response token is supervised once ("dual" masking; LaViDa's complementary masking). Returns a scalar,
    nats per token; raises ValueError for an unknown weighting."""
    t = draw_t(len(response), response.device, generator)
    noisy, masked = forward_process(response, t, model.config.mask_id, generator)
    if complementary:
        noisy = torch.cat([noisy, response.masked_fill(~masked, model.config.mask_id)])
        masked, t = torch.cat([masked, ~masked]), torch.cat([t, (1 - t).clamp(min=EPS)])
        images, prompt, response = images.repeat(2, 1, 1, 1), prompt.repeat(2, 1), response.repeat(2, 1)
    logits = model(images, prompt, noisy, causal=False)  # (B, W, vocab)
    return weigh(token_nll(logits, response), masked, t, weighting)


# ---------------------------------------------------------------- schedule

def schedule(step, ar_steps, diffusion_steps, warmup=100):
    """Which phase a step (from 0) is in, and the factor on the peak learning rate: ("ar" | "diffusion", float).

    Each phase warms up linearly to the peak (over `warmup` steps, at most a fifth of the phase), and from there falls linearly
    to 0, which it would reach one step after its last."""
    if step < ar_steps:
        phase, at, steps = "ar", step, ar_steps
    else:
        phase, at, steps = "diffusion", step - ar_steps, diffusion_steps
    warmup = max(1, min(warmup, steps // 5))
    return phase, min((at + 1) / warmup, (steps - at) / (steps - warmup + 1))


# ---------------------------------------------------------------- decoding (paper: confident, prefilling, structure priors)

class Step(NamedTuple):
    """What a decoding rule sees: the current iteration, for the B examples that are not finished yet, W positions each."""
    iteration: int            # 0, 1, 2, ...
    tokens: torch.Tensor      # (B, W) ids, mask_id where nothing is committed yet
    masked: torch.Tensor      # (B, W) bool
    given: torch.Tensor       # (B, W) bool, fixed from the start (structure prior)
    proposal: torch.Tensor    # (B, W) ids, the token that would be committed
    confidence: torch.Tensor  # (B, W) probability of the proposal, before temperature
    probs: torch.Tensor       # (B, W, vocab) the distribution itself, [MASK] excluded; of committed positions too


class RuleError(Exception):
    """A decoding rule failed, or did what a rule must not do; the message names it."""


class TraceLine(NamedTuple):
    """What one iteration did."""
    tokens: torch.Tensor      # (B, W) ids after this iteration
    committed: torch.Tensor   # (B, W) bool, by this iteration
    confidence: torch.Tensor  # (B, W), 0 for finished examples


@dataclass
class Decoded:
    tokens: torch.Tensor      # (B, W) ids, no [MASK] left
    iterations: torch.Tensor  # (B,) passes of the model that each example needed
    ends: torch.Tensor        # (B,) tokens before the response's EOS
    trace: list               # of TraceLine, one per iteration, if asked for

    def response(self, b):
        """Ids of example b's response, its EOS and what follows left out."""
        return self.tokens[b, :self.ends[b]].tolist()


def confident(threshold):
    """Confident decoding (the paper's rule): commit every position whose confidence exceeds the threshold.

    Raises ValueError for a threshold outside (0, 1]; at 1 exactly one token is committed per iteration."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: must be above 0 and at most 1")
    return lambda step: step.confidence > threshold


def select(rule, step, taken_back):
    """The rule's choice made safe -> positions to commit, positions to take back, both (B, W) bool.

    Committed: only masked positions, and at least one of each example, the most confident if the rule names none.
    Taken back: only committed positions, neither given nor `taken_back` (B, W) before. Raises RuleError if the rule fails,
    returns neither a bool tensor (B, W) nor a pair of them, or writes into the step."""
    name = getattr(rule, "__name__", rule)
    seen = Step(step.iteration, *(tensor.clone() for tensor in step[1:]))  # copies: no rule can harm the window
    versions = [tensor._version for tensor in seen[1:]]  # PyTorch counts the in-place writes to a tensor
    try:
        answer = rule(seen)
    except Exception as error:
        raise RuleError(f"decoding rule {name!r}: {type(error).__name__}: {error}") from error
    if versions != [tensor._version for tensor in seen[1:]]:
        raise RuleError(f"decoding rule {name!r} writes into the step; work on a copy, for example step.masked.clone()")
    pair = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, torch.zeros_like(step.masked))
    wanted = torch.bool, step.masked.shape, step.masked.device
    for choice in pair:
        got = (choice.dtype, choice.shape, choice.device) if isinstance(choice, torch.Tensor) else type(choice)
        if got != wanted:
            raise RuleError(f"decoding rule {name!r} must return a bool tensor of shape {tuple(wanted[1])} on {wanted[2]} "
                            f"(positions to commit), or two of them (to commit, to take back), not {got}")
    commit, take_back = pair[0] & step.masked, pair[1] & ~(step.masked | step.given | taken_back)
    best = step.confidence.masked_fill(~step.masked, -1).argmax(1, keepdim=True)  # (B, 1)
    fallback = torch.zeros_like(commit).scatter_(1, best, True)
    return torch.where(commit.any(1, keepdim=True), commit, fallback), take_back


def propose(logits, mask_id, temperature=0.0, generator=None):
    """logits (B, W, vocab) -> proposal (B, W), its confidence (B, W), probs (B, W, vocab). Takes [MASK] out of `logits`."""
    logits[..., mask_id] = -torch.inf
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # between 0.99 and 1 bf16 has two values: too few for a threshold
    probs = logits.softmax(-1)
    if temperature > 0:
        sharp = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)  # no overflow at tiny temperatures
        proposal = torch.multinomial(sharp.flatten(0, 1), 1, generator=generator).view(logits.shape[:2])
    else:
        proposal = probs.argmax(-1)
    return proposal, probs.gather(-1, proposal[..., None]).squeeze(-1), probs


def response_ends(tokens, given, eos_id):
    """Where each response ends (B,): its first EOS, but not before its last given word; W if there is none.

    A given EOS is no word: a window whose tail is fixed to EOS ends where the tail begins, or earlier."""
    W = tokens.shape[1]
    position = torch.arange(W, device=tokens.device)
    after = (given * (tokens != eos_id) * (position + 1)).amax(1, keepdim=True)  # (B, 1) just past the last given word
    return torch.where((tokens == eos_id) & (position >= after), position, W).amin(1)


@torch.inference_mode(False)  # even inside a caller's inference mode: `select` reads version counters
@torch.no_grad()
def decode(model, images, prompt, window, rule=confident(0.9), prefill=True, temperature=0.0, generator=None, trace=False):
    """Fill the [MASK]s of the window (B, W), a few per pass; tokens that are not [MASK] are given (structure prior).

    images (B, 3, H, H) uint8, prompt (B, P) ids. `rule` maps a Step to the masked positions to commit, (B, W) bool, or
    to (commit, take back): a committed position can become [MASK] again, once. So an example needs no more iterations
    than it has masks, or twice as many with a rule that takes back. `prefill` runs the prefix once, with the window as it
    is at the start in view, and keeps its keys and values: faster, but they go stale as tokens are committed (paper:
    prefilling). Returns Decoded. Raises RuleError for a rule that fails or breaks this contract."""
    mask_id, tokens, given = model.config.mask_id, window.clone(), window != model.config.mask_id
    iterations, taken_back = torch.zeros_like(tokens[:, 0]), torch.zeros_like(given)
    prefix = model.prefix(images, prompt)  # (B, V + P, D)
    active, past, lines = torch.arange(len(tokens), device=tokens.device), None, []
    for iteration in range(2 * window.shape[1]):
        unfinished = (tokens[active] == mask_id).any(1)
        if not unfinished.all():  # finished examples leave the batch
            active, prefix = active[unfinished], prefix[unfinished]
            past = past and [(k[unfinished], v[unfinished]) for k, v in past]
            if not len(active):
                break
        now = tokens[active]
        logits, cache = model.score(prefix, now, causal=False, past=past)
        if prefill and past is None:  # keep what precedes the last prompt token, which the token shift needs again
            past = [(k[:, :, :prefix.shape[1] - 1], v[:, :, :prefix.shape[1] - 1]) for k, v in cache]
            prefix = prefix[:, -1:]  # from here on
        proposal, confidence, probs = propose(logits, mask_id, temperature, generator)
        step = Step(iteration, now, now == mask_id, given[active], proposal, confidence, probs)
        commit, take_back = select(rule, step, taken_back[active])
        tokens[active] = torch.where(commit, proposal, now).masked_fill(take_back, mask_id)
        taken_back[active] |= take_back
        iterations[active] += 1
        if trace:
            whole = [x.new_zeros(window.shape).index_copy(0, active, x) for x in (commit, confidence)]
            lines.append(TraceLine(tokens.clone(), *whole))
    return Decoded(tokens, iterations, response_ends(tokens, given, model.config.eos_id), lines)


@torch.no_grad()
def decode_ar(model, images, prompt, length):
    """Greedy left-to-right decoding with a KV cache, one token per pass: the baseline, for weights of phase 1.

    Stops when every example has its EOS or `length` tokens; tokens after the EOS are EOS. Returns Decoded."""
    config = model.config
    hidden, cache = model.transformer(model.prefix(images, prompt), causal=True)
    tokens = torch.full((len(prompt), length), config.eos_id, device=prompt.device)
    finished = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for i in range(length):
        token, _, _ = propose(model.head(hidden[:, -1:]), config.mask_id)  # (B, 1)
        tokens[:, i] = token[:, 0].masked_fill(finished, config.eos_id)
        finished |= tokens[:, i] == config.eos_id
        if finished.all() or i == length - 1:
            break
        hidden, cache = model.transformer(model.embedding(tokens[:, i:i + 1]), causal=True, past=cache)
    ends = response_ends(tokens, torch.zeros_like(tokens, dtype=torch.bool), config.eos_id)
    return Decoded(tokens, (ends + 1).clamp(max=length), ends, [])


# ---------------------------------------------------------------- checkpoints

FORMAT = "mini-dimple checkpoint 1"


def checkpoint(model, tokenizer):
    """What `torch.save` writes and `load` reads: weights, config and tokenizer."""
    return {"format": FORMAT, "config": asdict(model.config), "merges": tokenizer.merges, "weights": model.state_dict()}


def read_state(path, wanted, device="cpu"):
    """The dict in a file written by `torch.save`. Raises OSError if it cannot be read, ValueError if it is damaged,
    holds more than tensors and plain values, or is of another format than `wanted`."""
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
    """(model, tokenizer) from a checkpoint written by train.py. Raises OSError, ValueError as `read_state`."""
    from tokenizer import Tokenizer  # our own file, the standard library alone; the checkpoint carries the merges
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
