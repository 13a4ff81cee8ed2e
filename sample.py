"""Caption a picture with a trained Mini-Dimple, and watch the tokens being committed. `python sample.py --help`."""
import math
import random
import re
import sys
from pathlib import Path

import torch

from data import DESCRIBE, folder, pad_prompts, toy
from mini_dimple import MAX_POSITIONS, confident, decode, decode_ar, load
from train import THRESHOLD, Parser, count, pick_device, seed

DEFAULT_CHECKPOINT = Path("out/mini_dimple.pt")
MASK, EOS = "_", "<eos>"  # how a trace shows them


def parse(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, metavar="F", help=f"default: {DEFAULT_CHECKPOINT}")
    parser.add_argument("--image", type=Path, metavar="F", help="default: a held-out toy scene, and its caption is graded")
    parser.add_argument("--prompt", metavar="TEXT", help="default: the most frequent one in training, for the toy set %r" % DESCRIBE)
    parser.add_argument("--rule", metavar="RULE", help=f"which positions to commit (default: confident:{THRESHOLD})")
    parser.add_argument("--length", type=count, metavar="N", help="window, in tokens (default: the longest trained)")
    parser.add_argument("--prior", metavar="TEXT", help="how the response begins: _ is one free token, other text is fixed")
    parser.add_argument("--no-prefill", action="store_true", help="run the whole sequence in every iteration")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) proposes the most probable token")
    parser.add_argument("--seed", type=seed, metavar="S", help="of the scene and of sampling (default: a new one each time)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser, parser.parse_args(argv)


def parse_rule(text):
    """"confident:0.9" -> rule. Raises ValueError."""
    name, _, number = text.partition(":")
    if name != "confident":
        raise ValueError(f"--rule {text}: unknown; use confident:THRESHOLD, for example confident:{THRESHOLD}")
    try:
        return confident(float(number or THRESHOLD))
    except ValueError as error:
        raise ValueError(f"--rule {text}: the threshold must be a number above 0 and at most 1") from error


def find_checkpoint(path):
    """The file to load. Raises ValueError if there is none."""
    path = path or DEFAULT_CHECKPOINT
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


def show(tokens, committed, tokenizer):
    """A window as text: words in place, those just committed in [brackets], masks as _, equal neighbours counted."""
    cells = []  # [text, new, times]
    for token, new in zip(tokens.tolist(), committed.tolist()):
        text = {tokenizer.mask_id: MASK, tokenizer.eos_id: EOS}.get(token) or tokenizer.decode([token]).strip()
        if cells and cells[-1][:2] == [text, new] and text in (MASK, EOS):
            cells[-1][2] += 1
        else:
            cells.append([text, new, 1])
    words = [text + (f"*{times}" if times > 1 else "") for text, _, times in cells]
    return " ".join(f"[{word}]" if new else word for word, (_, new, _) in zip(words, cells))


def main(argv=None):
    parser, args = parse(argv)
    sys.stdout.reconfigure(errors="replace")  # a caption may hold what this terminal cannot show
    with parser.reporting(ValueError, OSError):
        device, path = pick_device(args.device), find_checkpoint(args.checkpoint)
        rule = parse_rule(args.rule or f"confident:{THRESHOLD}")
        if not 0 <= args.temperature < math.inf:
            raise ValueError(f"--temperature {args.temperature}: must be a number, 0 or more")
        model, tokenizer = load(path, device)
        config = model.config
        if config.phase == "ar" and (args.rule or args.prior or args.no_prefill or args.temperature):
            raise ValueError(f"{path} comes out of the AR phase and decodes greedily, left to right: "
                             "--rule, --prior, --no-prefill and --temperature are for diffusion")
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
    if config.phase == "ar":
        out = decode_ar(model, images, prompts, length)
    else:
        generator = torch.Generator(device).manual_seed(number)
        out = decode(model, images, prompts, window.to(device), rule, not args.no_prefill, args.temperature, generator, trace=True)
    text, iterations = tokenizer.decode(out.response(0)), out.iterations.item()
    print(f"caption:    {text}")
    if scene and prompt in (DESCRIBE, toy.COUNT):
        right = toy.grade(text, scene, board)[1] if prompt == DESCRIBE else text == drawn.texts[0]
        print("grade:      " + ("fully right" if right else f"wrong; one right answer: {drawn.texts[0]}"))
    print()
    for iteration, line in enumerate(out.trace, 1):
        print(f"{iteration:3d}  {show(line.tokens[0], line.committed[0], tokenizer)}")
    tokens = min(out.ends[0].item() + 1, length)
    given = 0 if config.phase == "ar" else (window[0, :tokens] != config.mask_id).sum().item()
    print(f"{iterations} iterations for {tokens - given} response tokens (EOS counted{', given ones not' if given else ''}): "
          f"{(tokens - given) / max(iterations, 1):.1f} tokens per iteration")


if __name__ == "__main__":
    main()
