"""The one place that decodes many pictures and grades their captions: for training, the board of
rules, the claims and the exercises."""
import statistics
import time

import torch
from tqdm import tqdm

from data import Batches, pad_prompts, pad_responses, toy
from lab.training import phase_loss
from mini_dimple import confident, decode, decode_ar, full, prefilled

THRESHOLD = 0.9  # of confident decoding, in evaluation and in sample.py
BATCH = 64


def now(device):
    """Seconds; on CUDA, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Pictures:
    """The pictures of a Split on the device, each with a prompt and a window of masks.

    pictures[rows] -> images, prompts, windows: what `decoded` takes."""

    def __init__(self, split, config, tokenizer, device, length=None):
        """`length` of the windows: by default the longest trained."""
        self.split, self.config, self.tokenizer = split, config, tokenizer
        self.images = split.images.to(device)
        shape = len(split.texts), length or config.window
        self.windows = torch.full(shape, config.mask_id, device=device)
        self.ask(split.prompts)

    def ask(self, prompts):
        """Other prompts than before, one for each picture."""
        ids = pad_prompts(prompts, self.tokenizer, self.config.prompt_tokens)
        self.prompts = ids.to(self.images.device)

    def __getitem__(self, rows):
        return self.images[rows], self.prompts[rows], self.windows[rows]


class Scenes(Pictures):
    """Held-out scenes of the toy set, to be described, with what grades the answers."""

    def __init__(self, config, tokenizer, n, device, preset="tiny", length=None):
        self.board = toy.TOYS[preset]
        split = toy.examples(self.board, n, 0, held_out=True, instruction=toy.DESCRIBE)
        super().__init__(split, config, tokenizer, device, length)
        self.responses, self.lengths = pad_responses(split.texts, tokenizer, config.window)
        self.response_tokens = self.lengths.double().mean().item()  # with one EOS each

    def grade(self, texts):
        """-> which are right, which are well formed: lists of bool."""
        return grade(texts, self.split, self.board)


def grade(texts, split, board):
    """Captions of a Split's pictures -> which are right, which are well formed: lists of bool. Of
    your own pictures, right is what they are called, word for word."""
    if split.scenes is None:
        right = [text == wanted for text, wanted in zip(texts, split.texts)]
        return right, right
    grades = [toy.grade(text, scene, board) for text, scene in zip(texts, split.scenes)]
    return [right for _, right in grades], [formed for formed, _ in grades]


def decoded(model, batch, rule, look=prefilled, **options):
    """A batch (images, prompts, windows) through `decode`, with a look of its own -> Decoded."""
    *inputs, windows = batch
    return decode(look(model, *inputs), windows, model.config, rule, **options)


def default_way(model, pictures, phase, look=prefilled):
    """How a model captions unless said otherwise: rows -> Decoded. Weights of the AR phase decode
    greedily, left to right."""
    if phase == "ar":
        return lambda rows: decode_ar(model, *pictures[rows][:2], model.config.window)
    return lambda rows: decoded(model, pictures[rows], confident(THRESHOLD), look)


def caption(way, pictures, chunks=None, bar=None):
    """Decode all pictures by `way(rows) -> Decoded`, batch by batch, or chunk by chunk of rows ->
    texts, iterations, passes, seconds. `bar`: the words of a progress bar."""
    n, device = len(pictures.images), pictures.images.device
    texts, iterations, passes = [""] * n, [0] * n, [0] * n
    torch.manual_seed(0)  # a rule may draw random numbers
    start = now(device)
    for rows in tqdm(chunks or torch.arange(n).split(BATCH), desc=bar, leave=False,
                     disable=None if bar else True):
        out = way(rows)
        for b, row in enumerate(rows.tolist()):
            texts[row] = pictures.tokenizer.decode(out.response(b))
            iterations[row], passes[row] = out.iterations[b].item(), out.passes[b].item()
    return texts, iterations, passes, now(device) - start


def graded(way, scenes, chunks=None):
    """`caption`, and what its captions are worth: right, well formed, iterations, lists with one of
    each per scene."""
    texts, iterations, _, _ = caption(way, scenes, chunks)
    return *scenes.grade(texts), iterations


# ---------------------------------------------------------------- of a training run

def evaluate(model, tokenizer, split, origin, device):
    """-> figures of the phase just trained (dict), the captions, which are right."""
    config, phase, board = model.config, origin["phase"], toy.TOYS.get(origin["trained_on"])
    pictures = Pictures(split, config, tokenizer, device)
    texts, iterations, _, seconds = caption(
        default_way(model, pictures, phase), pictures, bar="evaluating")
    right, formed = grade(texts, split, board)
    tokens = statistics.fmean(len(tokenizer.encode(text)) + 1 for text in split.texts)
    figures = dict(iterations=statistics.fmean(iterations), response_tokens=tokens)
    if not board:
        loss = mean_loss(model, tokenizer, split, phase, device)
        return dict(exact_match=statistics.fmean(right), loss=loss, **figures), texts, right
    without = {}
    if phase == "diffusion":
        plain, _, _, plain_seconds = caption(
            default_way(model, pictures, phase, full), pictures, bar="without prefilling")
        without = dict(correct_without_prefill=statistics.fmean(grade(plain, split, board)[0]),
                       prefill_speedup=plain_seconds / seconds)
    pictures.ask([toy.COUNT] * len(texts))
    counts, *_ = caption(default_way(model, pictures, phase), pictures, bar="counting")
    figures = dict(
        correct=statistics.fmean(right), well_formed=statistics.fmean(formed), **figures,
        count_correct=statistics.fmean(
            text == toy.count_answer(scene) for text, scene in zip(counts, split.scenes)),
        **without)
    return figures, texts, right


@torch.no_grad()
def mean_loss(model, tokenizer, split, phase, device):
    """The phase's loss over a split, each example once: the mean over examples, nats per token."""
    batches = Batches(split, tokenizer, model.config, 1, 0, device)
    generator = torch.Generator(device).manual_seed(0)
    return statistics.fmean(phase_loss(model, batches(i, phase), phase, generator).item()
                            for i in range(len(split.texts)))
