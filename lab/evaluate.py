"""The one place that decodes many pictures and grades their captions: for training, the board of
rules, the claims and the exercises. And the diffusion loss above the exact posterior's."""
import contextlib
import statistics
import time
from collections import Counter
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import DESCRIBE, Batches, pad_prompts, pad_responses, toy
from data.exact import Exact
from data.worlds import captions, scene_of
from mini_dimple import (ar_loss, confident, decode, decode_ar, diffusion_loss, draw_t,
                         forward_process, full, prefilled, token_nll)

THRESHOLD = 0.9  # of confident decoding, in evaluation and in sample.py
BATCH = 64       # decoded at once on a CPU; a GPU takes as long for four times as many


def now(device):
    """Seconds; on a GPU, once it is done."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def batches(rows, device):
    """Rows (a tensor of indices), or lists of what belongs to them, as parts for one batch each."""
    return rows.split(BATCH if device.type == "cpu" else 4 * BATCH)


class Pictures:
    """The pictures of a Split on the device, each with a prompt and a window of masks; of a toy
    set, its board.

    pictures[rows] -> images, prompts, windows: what `decoded` takes."""

    def __init__(self, split, config, tokenizer, device, board=None, length=None):
        """`length` of the windows: by default the longest trained."""
        self.split, self.config, self.tokenizer, self.board = split, config, tokenizer, board
        self.images = split.images.to(device)
        shape = len(split.texts), length or config.window
        self.windows = torch.full(shape, config.mask_id, device=device)
        self.ask(split.prompts)

    def ask(self, prompts):
        """Other prompts than before, one for each picture."""
        ids = pad_prompts(prompts, self.tokenizer, self.config.prompt_tokens)
        self.prompts = ids.to(self.images.device)

    def exact(self):
        """-> rows -> the look of the perfect model. Raises ValueError (data.exact)."""
        perfect = Exact(self.split.scenes, self.split.prompts, self.board, self.tokenizer)
        return lambda rows: perfect.look(rows, self.images.device)

    def __getitem__(self, rows):
        return self.images[rows], self.prompts[rows], self.windows[rows]


class Scenes(Pictures):
    """Held-out scenes of a toy set, to be described."""

    def __init__(self, config, tokenizer, n, device, board=toy.TOYS["tiny"], length=None):
        split = toy.examples(board, n, 0, held_out=True, instruction=DESCRIBE)
        super().__init__(split, config, tokenizer, device, board, length)
        self.responses, self.lengths = pad_responses(split.texts, tokenizer, config.window)
        self.response_tokens = self.lengths.double().mean().item()  # with one EOS each
        self.objects = [len(scene) for scene in split.scenes]


class Captions(NamedTuple):
    """What `graded` gives: lists with one of each per picture, and seconds in all."""
    texts: list
    wrong: list       # None, or what is wrong
    tokens: list      # how many before the EOS
    ended: list       # whether there was one
    iterations: list
    passes: list
    seconds: float

    @property
    def right(self):
        return [one is None for one in self.wrong]


def mistake(text, ended, split, board, i):
    """What is wrong with a caption of a Split's picture i: None, or a word of toy.MISTAKES. Of your
    own pictures, right is what they are called, word for word."""
    if split.scenes is None:
        return None if text == split.texts[i] else "other words"
    return toy.mistake(text, split.scenes[i], board, ended)


def shares(wrong):
    """Mistakes of n captions -> the share of each kind that occurs, the commonest first."""
    return {kind: n / len(wrong) for kind, n in Counter(filter(None, wrong)).most_common()}


def decoded(model, batch, rule, look=prefilled, **options):
    """A batch (images, prompts, windows) through `decode`, with a look of its own -> Decoded."""
    *inputs, windows = batch
    return decode(look(model, *inputs), windows, model.config, rule, **options)


def default_way(model, pictures, phase, look=prefilled, temperature=0.0):
    """How a model captions unless said otherwise: rows -> Decoded. Weights of the AR phase decode
    greedily, left to right."""
    if phase == "ar":
        return lambda rows: decode_ar(model, *pictures[rows][:2], model.config.window)
    return lambda rows: decoded(model, pictures[rows], confident(THRESHOLD), look,
                                temperature=temperature)


def exact_way(pictures, rule, temperature=0.0):
    """How the perfect model captions: rows -> Decoded."""
    looks = pictures.exact()
    return lambda rows: decode(looks(rows), pictures.windows[rows], pictures.config, rule,
                               temperature)


def graded(way, pictures, chunks=None, bar=None):
    """Decode all pictures by `way(rows) -> Decoded`, batch by batch, or chunk by chunk of rows, and
    grade their captions -> Captions. `bar`: the words of a progress bar."""
    n, device = len(pictures.images), pictures.images.device
    found = [None] * n
    torch.manual_seed(0)  # a rule may draw random numbers
    start = now(device)
    for rows in tqdm(chunks or batches(torch.arange(n), device), desc=bar, leave=False,
                     disable=None if bar else True):
        out = way(rows)
        ended = out.ends < out.tokens.shape[1]
        columns = (x.tolist() for x in (rows, out.ends, ended, out.iterations, out.passes))
        for b, (row, *figures) in enumerate(zip(*columns)):
            found[row] = pictures.tokenizer.decode(out.response(b)), *figures
    seconds = now(device) - start
    texts, tokens, ended, iterations, passes = map(list, zip(*found))
    wrong = [mistake(text, end, pictures.split, pictures.board, i)
             for i, (text, end) in enumerate(zip(texts, ended))]
    return Captions(texts, wrong, tokens, ended, iterations, passes, seconds)


def one_scene(config, tokenizer, board, device):
    """A held-out scene of two objects, whose captions are few -> its Pictures, and their World
    (data/worlds.py). Raises ValueError (data.exact)."""
    split = scene_of(board, 2)
    return (Pictures(split, config, tokenizer, device, board),
            captions(board, split.scenes[0], tokenizer, config.window))


# ---------------------------------------------------------------- loss above the floor

class Floor:
    """How far a model's diffusion loss lies above the least possible one, the exact posterior's on
    the same masks, in nats per masked token: on held-out scenes, windows as long as the longest
    trained, and by the share masked, in fifths."""

    PARTS = tuple(f"{low}-{low + 20}%" for low in range(0, 100, 20))

    def __init__(self, board, config, tokenizer, device, n=500):
        """Raises ValueError where the exact posterior has no answer (data.exact)."""
        self.scenes = scenes = Scenes(config, tokenizer, n, device, board)
        generator = torch.Generator().manual_seed(0)
        t = draw_t(n, "cpu", generator)
        noisy, masked = forward_process(scenes.responses, t, config.mask_id, generator)
        self.noisy, self.masked = noisy.to(device), masked.to(device)
        self.responses, self.rows = scenes.responses.to(device), torch.arange(n).split(2 * BATCH)
        self.part = (5 * masked.double().mean(1)).long().clamp(max=4)
        exact = scenes.exact()
        self.least = self.nll(lambda rows: exact(rows)(self.noisy[rows])[0])

    @torch.no_grad()
    def nll(self, logits):
        """`logits(rows)` (B, W, vocab) -> -log p of each masked token, 0 elsewhere (n, W)."""
        found = [token_nll(logits(rows), self.responses[rows]) for rows in self.rows]
        return torch.cat(found) * self.masked

    def __call__(self, model):
        """-> {"all": nats per masked token, and of each of PARTS}."""
        images, prompts = self.scenes.images, self.scenes.prompts
        above = self.nll(lambda rows: model(
            images[rows], prompts[rows], self.noisy[rows], causal=False)) - self.least
        by_part = lambda x: torch.zeros(5, dtype=torch.double).index_add_(
            0, self.part, x.sum(1).cpu().double())  # MPS has no float64
        nats, tokens = by_part(above), by_part(self.masked)
        return {"all": (nats.sum() / tokens.sum()).item(),
                **dict(zip(self.PARTS, (nats / tokens.clamp(min=1)).tolist()))}


def floor_of(origin, config, tokenizer, device):
    """The Floor of a run's toy set, or None where it is not known."""
    board = toy.of(origin)
    try:
        return board and Floor(board, config, tokenizer, device)
    except ValueError as error:  # a tokenizer of a few examples
        print(f"the loss above its floor is not measured: {error}")


# ---------------------------------------------------------------- of a training run

def evaluate(model, tokenizer, split, origin, device):
    """-> figures of the phase just trained (dict), the captions, which are right."""
    phase, board, mean = origin["phase"], toy.of(origin), statistics.fmean
    pictures = Pictures(split, model.config, tokenizer, device, board)
    found = graded(default_way(model, pictures, phase), pictures, bar="evaluating")
    figures = dict(iterations=mean(found.iterations), response_tokens=mean(
        len(tokenizer.encode(text)) + 1 for text in split.texts))
    if not board:
        figures |= dict(exact_match=mean(found.right),
                        loss=mean_loss(model, tokenizer, split, phase, device))
        return figures, found.texts, found.right
    objects = [len(scene) for scene in split.scenes]
    figures = dict(correct=mean(found.right), mistakes=shares(found.wrong), **figures,
                   correct_by_objects=by_objects(objects, found.right))
    if phase == "diffusion":
        sampled = graded(default_way(model, pictures, phase, temperature=1.0), pictures,
                         bar="sampling")
        plain = graded(default_way(model, pictures, phase, full), pictures,
                       bar="without prefilling")
        figures |= dict(correct_at_temperature_1=mean(sampled.right),
                        correct_without_prefill=mean(plain.right),
                        prefill_speedup=plain.seconds / found.seconds)
        with contextlib.suppress(ValueError):  # a tokenizer of a few examples
            exact = graded(exact_way(pictures, confident(THRESHOLD)), pictures,
                           bar="the exact posterior")
            mine, perfect = (by_objects(objects, x.iterations) for x in (found, exact))
            figures["iterations_by_objects_and_exact"] = {n: [mine[n], perfect[n]] for n in mine}
    pictures.ask([toy.COUNT] * len(objects))
    counts = graded(default_way(model, pictures, phase), pictures, bar="counting").texts
    figures["count_correct"] = mean(
        text == toy.count_answer(scene) for text, scene in zip(counts, split.scenes))
    return figures, found.texts, found.right


def by_objects(objects, values):
    """-> the mean value of the pictures with so many objects, by their number."""
    return {n: statistics.fmean(value for value, m in zip(values, objects) if m == n)
            for n in sorted(set(objects))}


@torch.no_grad()
def mean_loss(model, tokenizer, split, phase, device):
    """The phase's loss over a split, each example once: the mean over examples, nats per token."""
    batches = Batches(split, tokenizer, model.config, 1, 0, device)
    generator = torch.Generator(device).manual_seed(0)
    loss = lambda batch: (ar_loss(model, *batch) if phase == "ar" else
                          diffusion_loss(model, *batch, generator)).item()
    return statistics.fmean(loss(batches(i, phase)) for i in range(len(split.texts)))
