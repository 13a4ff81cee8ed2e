"""Mini-Dimple: a discrete-diffusion multimodal LLM, after Dimple (arXiv 2505.16990), in one file.

The sequence, and below it what each state scores: the next token (token shift, both phases):

     [visual tokens] [    prompt      ] [        response window          ]
      v0 v1 ... v8   describe the image   a     red   [MASK]  [MASK]  <eos>
                                    |     |      |       |       |
                                    a    red   circle    at    <eos>

     phase 1, AR: each position (a row) sees      phase 2, diffusion: every position
     itself and what is before it: causal mask    sees every other: full attention

        key v v p p a red                            key v v p p a [M]
          v x . . . . .                                v x x x x x x
          v x x . . . .                                v x x x x x x
          p x x x . . .     the same weights           p x x x x x x
          p x x x x . .                                p x x x x x x
          a x x x x x .                                a x x x x x x
        red x x x x x x                              [M] x x x x x x

Decoding: a pass commits every token that the picture decides. Where several words would be right it
commits one, and the others follow. In brackets what a pass commits; an object has one wording here.

     pass 1   _    _    _   [a] [red] [circle]   _   [the] [left] [<eos>]
     pass 2   _    _    _    a   red   circle  [at]   the   left   <eos>
     pass 3   _  [can]  _    a   red   circle   at    the   left   <eos>
     pass 4  [i]  can [see]  a   red   circle   at    the   left   <eos>

B batch, H image_px, V visual tokens, P prompt tokens, W response window, T = V + P + W positions,
D width, nh heads, hd = D / nh. From top to bottom: model, training, decoding. What the paper does
not have, what is saved and what is measured are in rules/ and lab/.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F

MAX_POSITIONS = 4096  # length of the rotary table: T may not be more

@dataclass
class Config:
    """The sizes of the model, and its special tokens."""
    vocab_size: int
    eos_id: int             # ends the response and fills the window after it
    mask_id: int            # [MASK], the absorbing state of the forward process
    image_px: int = 48
    patch_px: int = 8       # 2x2 patches merge into one visual token: here 9, of 16 x 16 px
    vit_width: int = 128
    vit_layers: int = 1
    width: int = 128
    layers: int = 4
    heads: int = 4
    prompt_tokens: int = 3  # P: shorter prompts get EOS on the left, which the model sees
    window: int = 48        # the longest W in training, EOS included


# ------------------------------------------------ transformer block (shared by vision and language)
def rotary_table(positions, head_dim):
    """cos and sin of the rotary angles, each (positions, head_dim / 2)."""
    # base 100, not 10,000: sequences are short, and the slow channels would hardly turn
    frequencies = 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(positions)[:, None] * frequencies
    return angles.cos(), angles.sin()

def rotate(x, rotary):
    """Turn each pair of channels (i, i + hd / 2) of x (B, nh, T, hd) by its position's angle."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)  # bf16 stays bf16

def rms_norm(width):
    return nn.RMSNorm(width, eps=1e-6)  # stated, as PyTorch's default depends on the dtype

class Block(nn.Module):
    """Attention, then SwiGLU, each on the RMS-normalised residual stream; no biases."""

    def __init__(self, width, heads):
        super().__init__()
        hidden = 2 * width  # three times the width costs more and gains nothing on the toy set
        self.heads = heads
        self.attention_norm, self.mlp_norm = rms_norm(width), rms_norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, causal=False, rotary=None, past=None, at=None):
        """x (B, T, D) -> same shape, and keys and values (B, nh, past + T, hd). `past`: those of
        earlier positions, which all of x may see. With it `causal` masks nothing, so that a causal
        x must be one position. With `at` (B, T), too, `past` is of all positions and x stands at
        these: its keys and values replace the old ones, in a copy, and x sees all (`causal`: all
        that is not after it)."""
        B, T, D = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, nh, T, hd)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        visible = None
        if at is not None:
            at = at[:, None, :, None]  # (B, 1, T, 1)
            k, v = (old.scatter(2, at.expand_as(new), new) for old, new in zip(past, (k, v)))
            if causal:
                visible = torch.arange(k.shape[2], device=x.device) <= at  # (B, 1, T, past)
        elif past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, visible, is_causal=causal and past is None)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up), (k, v)


# ----------------------------------------------- vision encoder and projector (paper: architecture)
class ViT(nn.Module):
    """Images (B, 3, H, H), uint8 -> a feature vector per patch (B, (H / patch_px)^2, vit_width)."""

    def __init__(self, config):
        super().__init__()
        self.patch_px = config.patch_px
        self.embed = nn.Linear(3 * config.patch_px ** 2, config.vit_width, bias=False)
        count, width = (config.image_px // config.patch_px) ** 2, config.vit_width
        self.positions = nn.Parameter(torch.randn(count, width))  # scaled in Dimple.__init__
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.vit_layers))

    def forward(self, images):
        pixels = images.to(self.positions.dtype) / 127.5 - 1
        patches = F.unfold(pixels, self.patch_px, stride=self.patch_px)  # (B, 3 px^2, patches)
        x = self.embed(patches.transpose(1, 2)) + self.positions  # patches row by row
        for block in self.blocks:
            x, _ = block(x)
        return x

class Projector(nn.Module):
    """Patches (B, n * n, vit_width) -> visual tokens (B, n * n / 4, D): each 2x2 block of patches
    concatenated and normalised, then a 2-layer MLP into the language model's width."""

    def __init__(self, config):
        super().__init__()
        self.norm = rms_norm(4 * config.vit_width)
        self.up = nn.Linear(4 * config.vit_width, config.width, bias=False)
        self.down = nn.Linear(config.width, config.width, bias=False)

    def forward(self, patches):
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
        self.vit, self.projector = ViT(config), Projector(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = rms_norm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        cos, sin = rotary_table(MAX_POSITIONS, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for weight in self.parameters():
            if weight.dim() == 2:  # every matrix, the ViT's positions too
                nn.init.normal_(weight, std=0.02)

    def prefix(self, images, prompt):
        """images (B, 3, H, H) uint8, prompt (B, P) ids -> [visual tokens][prompt] (B, V + P, D).
        Raises ValueError for inputs of another shape or dtype."""
        side = self.config.image_px
        expect("images", images, torch.uint8, ("B", 3, side, side))
        expect("prompt", prompt, torch.long, (len(images), "P"))
        return torch.cat([self.projector(self.vit(images)), self.embedding(prompt)], dim=1)

    def transformer(self, x, causal, past=None, at=None):
        """x (B, T, D) -> hidden states (B, T, D), and the cache, each layer's keys and values.
        `past`: the cache of the positions before x; with `at` (B, T), of all positions, and x
        stands at these."""
        cache, start = [], 0 if past is None or at is not None else past[0][0].shape[2]
        end = start + x.shape[1]
        if end > MAX_POSITIONS:
            raise ValueError(f"expected at most {MAX_POSITIONS} positions of picture, prompt and "
                             f"window, got {end}")
        rotary = self.cos[start:end], self.sin[start:end]
        if at is not None:
            rotary = self.cos[at][:, None], self.sin[at][:, None]  # (B, 1, T, hd / 2)
        for i, block in enumerate(self.blocks):
            x, kv = block(x, causal, rotary, None if past is None else past[i], at)
            cache.append(kv)
        return self.norm(x), cache

    def logits(self, prefix, response, causal, past=None):
        """Logits (B, W, vocab) of the response (B, W), and the cache. Token shift: the state at
        position i scores token i + 1: the prefix's last position response[:, 0], the last none.
        With `past`, give the last position of the prefix alone."""
        x = torch.cat([prefix, self.embedding(response)], dim=1)
        hidden, cache = self.transformer(x, causal, past)
        return self.head(hidden[:, -response.shape[1] - 1:-1]), cache

    def forward(self, images, prompt, response, causal):
        """Logits (B, W, vocab) of the response (B, W); `causal` chooses the phase's attention."""
        return self.logits(self.prefix(images, prompt), response, causal)[0]


# -------------------------------- training, phase 1: autoregressive loss (paper: AR-then-diffusion)
def token_nll(logits, response):
    """-log p of each response token: (B, W, vocab), (B, W) -> (B, W)."""
    nll = F.cross_entropy(logits.flatten(0, 1), response.flatten(), reduction="none")
    return nll.view_as(response)

def ar_loss(model, images, prompt, response):
    """Next-token cross-entropy under the causal mask, the mean over the batch's tokens, of each
    response up to its first EOS, included. images (B, 3, H, H) uint8, prompt (B, P), response
    (B, W) -> nats per token."""
    nll = token_nll(model(images, prompt, response, causal=True), response)  # (B, W)
    eos = (response == model.config.eos_id).long()
    scored = eos.cumsum(1) - eos == 0  # no EOS strictly before
    return (nll * scored).sum() / scored.sum()


# --------------------------------------------------------- training, phase 2: masked diffusion loss
EPS = 1e-3  # the smallest t: keeps 1 / t bounded

def draw_t(B, device, generator=None):
    """One t per example (B,), uniform on (EPS, 1]. Stratified (ours, for less noise): example i
    draws from the i-th of B equal intervals."""
    u = (torch.arange(B, device=device) + torch.rand(B, device=device, generator=generator)) / B
    return 1 - (1 - EPS) * u

def forward_process(response, t, mask_id, generator=None):
    """Each token of the response (B, W) becomes [MASK] with probability t (B,), independently ->
    noisy (B, W), masked (B, W) bool."""
    masked = torch.rand(response.shape, device=response.device, generator=generator) < t[:, None]
    return response.masked_fill(masked, mask_id), masked

def diffusion_loss(model, images, prompt, response, generator=None):
    """Equation (3): under full attention, the masked tokens' -log p, each example's sum weighted by
    1 / t, over the window's W tokens; the mean over the batch. An example with no masked token
    counts 0; image and prompt are never masked. Shapes as in `ar_loss`; nats per token."""
    t = draw_t(len(response), response.device, generator)
    noisy, masked = forward_process(response, t, model.config.mask_id, generator)
    logits = model(images, prompt, noisy, causal=False)  # (B, W, vocab)
    nll = token_nll(logits, response) * masked           # (B, W)
    return (nll.sum(1) / t).mean() / response.shape[1]

def schedule(step, steps, warmup=100):
    """The factor on the peak learning rate at a step (from 0) of a phase. It rises linearly over
    `warmup` steps (at most a fifth of the phase), then falls linearly to 0, which it would reach
    one step after the last."""
    warmup = max(1, min(warmup, steps // 5))
    return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))


# ------------------------------------------------ looks: forward passes (paper 3.4: prefilling)
# look(tokens (B, W), state) -> logits (B, W, vocab), next state. A state is what a look keeps, say
# a cache, None at first. A look never changes the state that it is given, so that a rule can look
# ahead and go on as if it had not.
@torch.no_grad()
def full(model, images, prompt, causal=False):
    """A look that runs the whole sequence in every pass. images (B, 3, H, H) uint8, prompt (B, P)
    ids; `causal`: as phase 1 reads it. Raises ValueError as `Dimple.prefix`."""
    prefix = model.prefix(images, prompt)  # (B, V + P, D)

    @torch.no_grad()
    def look(tokens, state=None):
        return model.logits(prefix, tokens, causal)[0], None
    return look

@torch.no_grad()
def prefilled(model, images, prompt):
    """Prefilling: the first pass keeps the keys and values of the prefix. They saw the window as it
    was then, and go stale as tokens are committed. Otherwise as `full`."""
    prefix = model.prefix(images, prompt)
    kept = prefix.shape[1] - 1  # all but the last prompt token, which scores the window's first
    last = prefix[:, kept:]

    @torch.no_grad()
    def look(tokens, state=None):
        if state is not None:
            return model.logits(last, tokens, causal=False, past=state)[0], state
        logits, cache = model.logits(prefix, tokens, causal=False)
        return logits, [(k[:, :, :kept], v[:, :, :kept]) for k, v in cache]
    return look


# -------------------------------------------- confident decoding (paper 3.4 and Algorithm 1)
def exclude(logits, mask_id):
    """A copy of the logits (..., vocab) in which [MASK] cannot be chosen; in float32 or better, as
    bf16 has only two values between 0.99 and 1."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    logits[..., mask_id] = -torch.inf
    return logits

@torch.no_grad()
def confident_decoding(look, tokens, mask_id, threshold=0.9):
    """The paper's decoding, to be read: `decode` below commits the same tokens, and is what runs.
    Each pass proposes the likeliest token at every [MASK] of the window (B, W). It commits the
    proposals whose probability exceeds the threshold, or the most probable one if none does."""
    state = None
    while (masked := tokens == mask_id).any():
        logits, state = look(tokens, state)                                  # (B, W, vocab)
        confidence, proposal = exclude(logits, mask_id).softmax(-1).max(-1)  # (B, W) each
        most = confidence.masked_fill(~masked, 0).argmax(1, keepdim=True)    # (B, 1)
        # if any exceeds the threshold, the most probable one does
        commit = (confidence > threshold).scatter(1, most, True) & masked
        tokens = torch.where(commit, proposal, tokens)
    return tokens


# ---------------------- decoding by any rule, from any window (paper 5: structure priors)
def confident(threshold):
    """Confident decoding as a rule. Raises ValueError for a threshold outside (0, 1]."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: must be above 0 and at most 1")
    return lambda step: step.confidence > threshold

def draw(logits, temperature, generator=None):
    """A token from softmax(logits / temperature): logits (B, W, vocab) -> ids (B, W)."""
    shifted = logits - logits.amax(-1, keepdim=True)  # no overflow at tiny temperatures
    sharp = (shifted / temperature).softmax(-1)
    # as torch.multinomial does it, but without an error on a GPU where there is a NaN
    return (sharp / torch.empty_like(sharp).exponential_(generator=generator)).argmax(-1)

@dataclass(eq=False)
class Step:
    """One iteration as a rule sees it: B examples, W positions. A rule may write into it; the loop
    then goes by what the rule wrote."""
    iteration: int            # 0, 1, 2, ...
    limit: int                # the most iterations: the last commits all that is left
    tokens: torch.Tensor      # (B, W) ids, mask_id where nothing is committed
    given: torch.Tensor       # (B, W) bool: fixed from the start (structure prior)
    raw_logits: torch.Tensor  # (B, W, vocab) of this pass, as the model gave them
    look_ahead: Callable      # what `look` calls: tokens -> logits
    mask_id: int
    eos_id: int
    memory: dict              # the rule's own, empty at first, as long as the decoding lasts
    temperature: float = 0.0
    generator: torch.Generator | None = None  # for random numbers, so that a seed repeats them

    masked: torch.Tensor = field(init=False)        # (B, W) bool: still a [MASK]
    logits: torch.Tensor = field(init=False)        # (B, W, vocab), [MASK] excluded
    probs: torch.Tensor = field(init=False)         # (B, W, vocab), at committed positions, too
    proposal: torch.Tensor = field(init=False)      # (B, W) ids: what would be committed
    confidence: torch.Tensor = field(init=False)    # (B, W) its probability, before temperature
    at_least_one: torch.Tensor = field(init=False)  # (B, W) bool: what `commit` added on its own
    passes: int = field(init=False, default=1)      # runs of the model in this iteration

    def __post_init__(self):
        self.masked = self.tokens == self.mask_id
        self.at_least_one = torch.zeros_like(self.masked)
        self.rescore(self.raw_logits)

    def look(self, tokens):
        """One more pass, over any window (B, W') -> logits (B, W', vocab), [MASK] excluded. It
        counts as a pass, and leaves the look's state as it is."""
        self.passes += 1
        return exclude(self.look_ahead(tokens), self.mask_id)

    def rescore(self, logits):
        """Replace the logits (B, W, vocab), and compute probs, proposal and confidence anew. Raises
        ValueError where they are not numbers; on a GPU `decode` does, when it waits next."""
        self.logits = exclude(logits, self.mask_id)
        # a whole row becomes NaN if one logit is NaN or infinite, or all are -inf
        self.probs = self.logits.softmax(-1)
        self.propose(draw(self.logits, self.temperature, self.generator) if self.temperature
                     else self.probs.argmax(-1))

    def score(self, logits):
        raise AttributeError("step.score(logits) is step.rescore(logits) now")

    def propose(self, proposal):
        """Replace the proposal (B, W); its confidence follows. Raises ValueError, as `rescore`."""
        self.proposal = proposal
        self.confidence = self.probs.gather(-1, proposal[..., None]).squeeze(-1)
        self.expect_numbers(self.confidence)

    def commit(self, where):
        """The next window: the proposals at the masks of `where` (B, W) bool; in an example without
        any there, the most confident one. Raises ValueError, as `rescore`."""
        self.expect_numbers(self.confidence.masked_fill(~self.masked, 0))
        where = where & self.masked
        most = self.confidence.masked_fill(~self.masked, -torch.inf).argmax(1, keepdim=True)
        alone = torch.zeros_like(where).scatter(1, most, ~where.any(1, keepdim=True))
        self.at_least_one = alone & self.masked  # finished examples have none
        return torch.where(where | self.at_least_one, self.proposal, self.tokens)

    def expect_numbers(self, values):
        self.broken = values.isnan().any()
        if self.broken.device.type == "cpu":
            expect_numbers(self.broken)

@torch.no_grad()
def decode(look, window, config, rule=confident(0.9), temperature=0.0, generator=None, limit=None,
           watch=None):
    """Fill the [MASK]s of the window (B, W), a few in each pass -> Decoded. Its other tokens are
    given, and stay (structure prior). An example without a [MASK] is finished, and stays.

    `rule`: Step -> positions to commit, (B, W) bool, or the next window, (B, W') ids: a rule may
    take tokens back, write others, and grow or shrink the window at its end. Iteration number
    `limit` commits all that is left: by default twice the window, or twice the longest trained.
    `watch(step, tokens)`, if given, is called after each iteration with the window that it made.
    Raises ValueError for what it cannot start with, and for logits that are not numbers."""
    check_decoding(window, config, temperature, limit)
    limit = limit or 2 * max(window.shape[1], config.window)
    tokens, given, state, memory = window.clone(), window != config.mask_id, None, {}
    iterations, passes, left = window.new_zeros(3, len(window))  # (B,) each
    iteration, broken = 0, torch.zeros_like(given[0, 0])
    while any_left(masked := tokens == config.mask_id, broken):
        logits, state = look(tokens, state)
        step = Step(iteration, limit, tokens.clone(), given.clone(), logits,
                    lambda other, state=state: look(other, state)[0], config.mask_id,
                    config.eos_id, memory, temperature, generator)
        last, unfinished = iteration + 1 == limit, masked.any(1)
        answer = masked if last else rule(step)
        # bool: the positions to commit; ids: the next window itself
        new = step.commit(answer) if answer.dtype == torch.bool else answer
        tokens, given = put_back(new, tokens, given, unfinished, config.eos_id)
        iterations += unfinished
        passes += unfinished * step.passes
        left += masked.sum(1) * last
        iteration, broken = iteration + 1, step.broken
        if watch is not None:
            watch(step, tokens)
    return Decoded(tokens, iterations, passes, left, response_ends(tokens, given, config.eos_id))

@dataclass
class Decoded:
    tokens: torch.Tensor      # (B, W) ids, no [MASK] left
    iterations: torch.Tensor  # (B,) how many it took, the limit's included
    passes: torch.Tensor      # (B,) runs of the model, the rule's own looks included
    left: torch.Tensor        # (B,) masks that the limit's iteration filled
    ends: torch.Tensor        # (B,) tokens before the response's EOS

    def response(self, b):
        """Ids of example b's response, its EOS and what follows left out."""
        return self.tokens[b, :self.ends[b]].tolist()

def put_back(new, tokens, given, unfinished, eos_id):
    """A rule's window `new` (B, W'), but given tokens and finished examples as in `tokens` (B, W)
    -> tokens, given (B, W''): W' unless that would cut one of these off."""
    W, width = new.shape[1], max(new.shape[1], tokens.shape[1])
    new, tokens = (F.pad(x, (0, width - x.shape[1]), value=eos_id) for x in (new, tokens))
    given = F.pad(given, (0, width - given.shape[1]))
    keep = given | ~unfinished[:, None]
    if W < width:  # it may lose the EOS after a finished response, but no given token
        needed = keep & (given | (tokens != eos_id))
        W = max(W, (needed * torch.arange(1, width + 1, device=needed.device)).max().item())
    return torch.where(keep, tokens, new)[:, :W], given[:, :W]

def response_ends(tokens, given, eos_id):
    """Where each response ends (B,): at the first EOS after its last given word, else at W. A word
    of a structure prior ("answer:") belongs to the response, whatever stands before it."""
    word = given & (tokens != eos_id)
    words_ahead = word.flip(1).cumsum(1).flip(1)  # (B, W)
    ended = ((tokens == eos_id) & (words_ahead == 0)).cumsum(1) > 0
    return (~ended).sum(1)

def any_left(masked, broken):
    """Whether a [MASK] is left. Raises ValueError if the logits of the pass before were broken."""
    some, broken = torch.stack([masked.any(), broken]).tolist()  # a GPU is waited for here
    expect_numbers(broken)
    return some

@torch.no_grad()
def decode_ar(model, images, prompt, length, temperature=0.0, generator=None):
    """The baseline, for weights of phase 1: left to right, one token per pass, with a KV cache,
    until every example has its EOS or `length` tokens; EOS after it. The likeliest token, or at a
    temperature a draw: at 1 from the model's own law. Returns Decoded."""
    eos_id, x, cache = model.config.eos_id, model.prefix(images, prompt), None
    tokens = torch.full((len(prompt), length), eos_id, device=x.device)
    finished = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
    for i in range(length):
        hidden, cache = model.transformer(x, causal=True, past=cache)
        logits = exclude(model.head(hidden[:, -1]), model.config.mask_id)  # (B, vocab)
        token = draw(logits, temperature, generator) if temperature else logits.argmax(-1)
        tokens[:, i] = token.masked_fill(finished, eos_id)
        finished |= tokens[:, i] == eos_id
        if finished.all():
            break
        x = model.embedding(tokens[:, i:i + 1])
    ends = response_ends(tokens, torch.zeros_like(tokens, dtype=torch.bool), eos_id)
    passes = (ends + 1).clamp(max=length)  # one for each token, the EOS included
    return Decoded(tokens, passes, passes, torch.zeros_like(passes), ends)


# ---------------------------- checks at the doors, `Dimple.prefix` and `decode`, and of the logits
def expect(name, value, dtype, shape):
    """Raises ValueError, with what was expected and what came, unless `value` is a tensor of this
    dtype and shape (a letter: any size from 1 on)."""
    fits = [n > 0 if isinstance(want, str) else n == want for n, want in zip(value.shape, shape)]
    if value.dtype != dtype or len(value.shape) != len(shape) or not all(fits):
        raise ValueError(f"{name}: expected {dtype} ({', '.join(map(str, shape))}), got "
                         f"{value.dtype} {tuple(value.shape)}")

def check_decoding(window, config, temperature, limit):
    """Raises ValueError for what `decode` cannot start with."""
    expect("window", window, torch.long, ("B", "W"))
    if ((window < 0) | (window >= config.vocab_size)).any():
        raise ValueError(f"window: expected ids from 0 to {config.vocab_size - 1}, got "
                         f"{window.min()} to {window.max()}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: expected a number, 0 or more, got {temperature}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected a number of iterations, 1 or more, got {limit}")

def expect_numbers(broken):
    if broken:
        raise ValueError("expected numbers, got a NaN: from logits that are NaN or infinite, or "
                         "all -inf, or from a rule; look for 0/0 and for 0 * log(0)")
