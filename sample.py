"""Caption a picture with a trained Mini-Dimple, and watch the tokens being committed. `python sample.py --help`."""
import itertools
import math
import random
import re
import sys
from pathlib import Path

import torch
from PIL import Image

from data import DESCRIBE, drawing, folder, pad_prompts, toy
from mini_dimple import MAX_POSITIONS, decode, decode_ar, load
from rules import LOOKS, RuleError, named, resolve, resolve_look
from train import THRESHOLD, Parser, count, pick_device, script, seed

TRAINED = Path("out/mini_dimple.pt")
SHIPPED = Path(__file__).parent / "data" / "mini_dimple.pt"
MASK = "_"  # how a trace shows it; EOS as `drawing` does


def parse(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, metavar="F", help=f"default: {TRAINED} if there is one, else the weights that come with Mini-Dimple")
    parser.add_argument("--image", type=Path, metavar="F", help="default: a held-out toy scene, and its caption is graded")
    parser.add_argument("--prompt", metavar="TEXT", help="default: the most frequent one in training, for the toy set %r" % DESCRIBE)
    parser.add_argument("--rule", action="append", metavar="RULE", help=f"which positions to commit (default: confident:{THRESHOLD}); "
                        f"one of {', '.join(named())}, or path/to/mine.py; given several times, each decodes the picture")
    parser.add_argument("--picture", type=Path, metavar="F", help="draw the decoding: an animation (.gif), or a strip (.png)")
    parser.add_argument("--length", type=count, metavar="N", help="window, in tokens (default: the longest trained)")
    parser.add_argument("--prior", metavar="TEXT", help="how the response begins: _ is one free token, other text is fixed")
    parser.add_argument("--look", metavar="LOOK", help=f"how a pass is made: {', '.join(LOOKS)}, or path/to/mine.py (default: prefilled; full: the whole sequence anew)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) proposes the most probable token")
    parser.add_argument("--seed", type=seed, metavar="S", help="of the scene and of sampling (default: a new one each time)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser, parser.parse_args(argv)


def find_checkpoint(path):
    """The file to load: the one asked for, else the one trained here, else the shipped one. Raises ValueError if it is missing."""
    path = path or (TRAINED if TRAINED.exists() else SHIPPED)
    if not path.exists():
        raise ValueError(f"{path} does not exist: train a model with `python train.py`, or name one with --checkpoint")
    return path


def make_window(prior, length, tokenizer):
    """A window (1, length) of ids that begins with the prior; MASK where a token is free.

    White space before a `_` belongs to the free token, as in the tokenizer's words. Raises ValueError if it does not fit."""
    ids = []
    for part in re.split(r"(\s*_)", prior):
        ids += [tokenizer.mask_id] if part.strip() == "_" else tokenizer.encode(part)
    if len(ids) > length:
        raise ValueError(f"--length {length}: too small for the --prior, which has {len(ids)} tokens")
    return torch.tensor([ids + [tokenizer.mask_id] * (length - len(ids))])


def label(token, tokenizer):
    return {tokenizer.mask_id: MASK, tokenizer.eos_id: drawing.EOS}.get(token) or tokenizer.decode([token]).strip()


def show(tokens, before, tokenizer):
    """A window (W,) as text: words in place, what changed since `before` in [brackets], masks as _, equal neighbours counted."""
    cells = []  # [text, new, times]
    for token, old in itertools.zip_longest(tokens.tolist(), before[:len(tokens)].tolist()):  # what the window grew by is new
        text, new = label(token, tokenizer), token != old
        if cells and cells[-1][:2] == [text, new] and text in (MASK, drawing.EOS):
            cells[-1][2] += 1
        else:
            cells.append([text, new, 1])
    words = [text + (f"*{times}" if times > 1 else "") for text, _, times in cells]
    return " ".join(f"[{word}]" if new else word for word, (_, new, _) in zip(words, cells))


def panel(title, window, trace, tokenizer):
    """One example's window (W,) and its trace -> what `drawing` shows: the window before the first iteration and after each."""
    cells = [drawing.Cell(label(token, tokenizer), "masked" if token == tokenizer.mask_id else "given", 0.0, False) for token in window.tolist()]
    lines = [cells]
    for record in trace:
        before, cells = cells, []
        tokens, confidence = record.tokens[0].tolist(), record.confidence[0].tolist()
        written, back = (record.by_rule | record.at_least_one | record.by_limit)[0].tolist(), record.taken_back[0].tolist()
        for i, token in enumerate(tokens):
            if written[i]:
                cells.append(drawing.Cell(label(token, tokenizer), "committed", confidence[i], True))
            elif token == tokenizer.mask_id:
                cells.append(drawing.Cell(MASK, "masked", 0.0, back[i]))
            else:
                cells.append(before[i]._replace(new=False))
        lines.append(cells)
    return drawing.Panel(title, lines)


@script
def main(argv=None):
    parser, args = parse(argv)
    with parser.reporting(ValueError, OSError):
        device, path = pick_device(args.device), find_checkpoint(args.checkpoint)
        names = args.rule or [f"confident:{THRESHOLD}"]
        rules, look = [resolve(name) for name in names], resolve_look(args.look or "prefilled")
        if not 0 <= args.temperature < math.inf:
            raise ValueError(f"--temperature {args.temperature}: must be a number, 0 or more")
        if args.picture and args.picture.suffix.lower() not in (".gif", ".png"):
            raise ValueError(f"--picture {args.picture}: must end in .gif or .png")
        if args.picture:
            args.picture.parent.mkdir(parents=True, exist_ok=True)
        model, tokenizer = load(path, device)
        config = model.config
        greedy = config.phase == "ar"
        if greedy and (args.rule or args.prior or args.look or args.temperature or args.picture):
            raise ValueError(f"{path} comes out of the AR phase and decodes greedily, left to right: "
                             "--rule, --look, --prior, --temperature and --picture are for diffusion")
        prompt = config.prompt if args.prompt is None else args.prompt
        number = random.randrange(10_000) if args.seed is None else args.seed
        if not 0 < len(tokenizer.encode(prompt)) <= config.prompt_tokens:
            raise ValueError(f"--prompt {prompt!r}: {len(tokenizer.encode(prompt))} tokens; this model was trained on prompts "
                             f"of 1 to {config.prompt_tokens}")
        length = config.window if args.length is None else args.length
        longest = MAX_POSITIONS - config.prompt_tokens - (config.image_px // config.patch_px // 2) ** 2
        if not 1 <= length <= longest:
            raise ValueError(f"--length {length}: must be from 1 to {longest}")
        window = make_window(args.prior or "", length, tokenizer)
        if length > config.window:
            print(f"{parser.prog}: warning: --length {length}: the longest window in training had {config.window} tokens; "
                  "the further beyond it, the worse the captions", file=sys.stderr)
        if args.image:
            scene, image = None, folder.load_image(args.image, config.image_px)
        elif config.trained_on == "pictures":
            raise ValueError(f"{path} was trained on your own pictures: name one with --image")
        else:
            board = toy.TOYS[config.trained_on]
            drawn = toy.examples(board, 1, number, held_out=True, instruction=toy.COUNT if prompt == toy.COUNT else DESCRIBE)
            scene, image = drawn.scenes[0], drawn.images[0]

    print(f"checkpoint: {path}")
    print(f"picture:    {args.image or f'a held-out scene, drawn with --seed {number}'}")
    print(f"prompt:     {prompt}")
    images, prompts = image[None].to(device), pad_prompts([prompt], tokenizer, config.prompt_tokens).to(device)
    panels = []
    for name, rule in zip(names, rules):
        torch.manual_seed(number)  # a rule may draw random numbers
        if greedy:
            out = decode_ar(model, images, prompts, length)
        else:
            if args.rule:
                print(f"rule:       {name}")
            generator = torch.Generator(device).manual_seed(number)
            with parser.reporting(RuleError, ValueError):
                out = decode(look(model, images, prompts), window.to(device), config, rule, args.temperature, generator, trace=True)
        text, passes = tokenizer.decode(out.response(0)), out.passes.item()
        print(f"caption:    {text}")
        if scene and prompt in (DESCRIBE, toy.COUNT):
            right = toy.grade(text, scene, board)[1] if prompt == DESCRIBE else text == drawn.texts[0]
            print("grade:      " + ("fully right" if right else f"wrong; one right answer: {drawn.texts[0]}"))
        print()
        before = window[0]
        for iteration, record in enumerate(out.trace, 1):
            print(f"{iteration:3d}  {show(record.tokens[0], before, tokenizer)}")
            before = record.tokens[0]
        tokens = min(out.ends[0].item() + 1, out.tokens.shape[1])
        given = 0 if greedy else (window[0, :tokens] != config.mask_id).sum().item()
        print(f"{passes} passes for {tokens - given} response tokens (EOS counted{', given ones not' if given else ''}): "
              f"{(tokens - given) / max(passes, 1):.1f} tokens per pass")
        if out.left.item():
            print(f"the limit of passes was reached: {out.left.item()} tokens were committed together in the last one")
        panels.append(panel(rule.__name__, window[0], out.trace, tokenizer))
    if args.picture:
        with parser.reporting(OSError):
            drawing.save_decoding(args.picture, Image.fromarray(image.permute(1, 2, 0).numpy()), panels)
        print(f"drawn:      {args.picture}")


if __name__ == "__main__":
    main()
