"""Caption a picture with a trained Mini-Dimple, and watch the tokens being committed."""
import random
import re
import sys
from pathlib import Path

import torch
from data import DESCRIBE, folder, pad_prompts, toy
from lab import drawing
from lab.checkpoint import SHIPPED, load
from lab.evaluate import THRESHOLD
from lab.shell import DEVICE, Parser, count, pick_device, script, seed, temperature
from lab.trace import follow, show, told
from lab.viewer import decoding, picture_of, save_viewer
from mini_dimple import MAX_POSITIONS, decode_ar
from rules import LOOKS, RuleError, named, resolve, resolve_look

TRAINED = Path("out/mini_dimple.pt")


def parse(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--checkpoint", type=Path, metavar="F", help=f"default: {TRAINED} if there is one, else "
           "the weights that come with Mini-Dimple")
    option("--image", type=Path, metavar="F",
           help="default: a held-out toy scene, and its caption is graded")
    option("--prompt", metavar="TEXT", help="default: the most frequent one in training, for the "
           f"toy set {DESCRIBE!r}")
    option("--rule", action="append", metavar="RULE", help="which positions to commit (default: "
           f"confident:{THRESHOLD}); one of {', '.join(named())}, or path/to/mine.py; given "
           "several times, each decodes the picture")
    option("--picture", type=Path, metavar="F",
           help="show the decoding: a page for the browser (.html), an animation (.gif), or a "
           "strip (.png)")
    option("--length", type=count, metavar="N",
           help="window, in tokens (default: the longest trained)")
    option("--prior", metavar="TEXT",
           help="how the response begins: _ is one free token, other text is fixed")
    option("--look", metavar="LOOK", help=f"how a pass is made: {', '.join(LOOKS)}, or "
           "path/to/mine.py (default: prefilled; full: the whole sequence anew)")
    option("--temperature", type=temperature, default=0.0, metavar="T",
           help="0 (default) proposes the most probable token")
    option("--seed", type=seed, metavar="S",
           help="of the scene and of sampling (default: a new one each time)")
    option("--device", default="auto", **DEVICE)
    return parser, parser.parse_args(argv)


def find_checkpoint(path):
    """The file to load: the one asked for, else the one trained here, else the shipped one. Raises
    ValueError if it is missing."""
    path = path or (TRAINED if TRAINED.exists() else SHIPPED)
    if not path.exists():
        raise ValueError(f"{path} does not exist: train a model with `python train.py`, or name "
                         "one with --checkpoint")
    return path


def make_window(prior, length, tokenizer):
    """A window (1, length) of ids that begins with the prior; MASK where a token is free.

    White space before a `_` belongs to the free token, as in the tokenizer's words. Raises
    ValueError if it does not fit."""
    ids = []
    for part in re.split(r"(\s*_)", prior):
        ids += [tokenizer.mask_id] if part.strip() == "_" else tokenizer.encode(part)
    if len(ids) > length:
        raise ValueError(f"--length {length}: too small for the --prior, which has {len(ids)} "
                         "tokens")
    return torch.tensor([ids + [tokenizer.mask_id] * (length - len(ids))])


@script
def main(argv=None):
    parser, args = parse(argv)
    with parser.reporting(ValueError, OSError):
        device, path = pick_device(args.device), find_checkpoint(args.checkpoint)
        names = args.rule or [f"confident:{THRESHOLD}"]
        rules, look = [resolve(name) for name in names], resolve_look(args.look or "prefilled")
        if args.picture:
            if args.picture.suffix.lower() not in (".html", ".gif", ".png"):
                raise ValueError(f"--picture {args.picture}: must end in .html, .gif or .png")
            args.picture.parent.mkdir(parents=True, exist_ok=True)
        model, tokenizer, origin = load(path, device)
        config, greedy = model.config, origin["phase"] == "ar"
        if greedy and (args.rule or args.prior or args.look or args.temperature or args.picture):
            raise ValueError(f"{path} comes out of the AR phase and decodes greedily, left to "
                             "right: --rule, --look, --prior, --temperature and --picture are "
                             "for diffusion")
        prompt = origin["prompt"] if args.prompt is None else args.prompt
        number = random.randrange(10_000) if args.seed is None else args.seed
        tokens = len(tokenizer.encode(prompt))
        if not 0 < tokens <= config.prompt_tokens:
            raise ValueError(f"--prompt {prompt!r}: {tokens} tokens; this model was trained on "
                             f"prompts of 1 to {config.prompt_tokens}")
        length = config.window if args.length is None else args.length
        visual = (config.image_px // config.patch_px // 2) ** 2
        longest = MAX_POSITIONS - config.prompt_tokens - visual
        if not 1 <= length <= longest:
            raise ValueError(f"--length {length}: must be from 1 to {longest}")
        window = make_window(args.prior or "", length, tokenizer)
        if length > config.window:
            print(f"{parser.prog}: warning: --length {length}: the longest window in training had "
                  f"{config.window} tokens; the further beyond it, the worse the captions",
                  file=sys.stderr)
        if args.image:
            scene, image = None, folder.load_image(args.image, config.image_px)
            if toy.of(origin):
                print(f"{parser.prog}: warning: {path} has seen nothing but coloured shapes on a "
                      "plain ground: a caption of any other picture means nothing; "
                      "docs/pictures.md shows how to train on your own", file=sys.stderr)
        elif toy.of(origin) is None:
            raise ValueError(f"{path} was trained on {origin['trained_on']}, not on a toy set: "
                             "name a picture with --image")
        else:
            board = toy.of(origin)
            drawn = toy.examples(board, 1, number, held_out=True,
                                 instruction=toy.COUNT if prompt == toy.COUNT else DESCRIBE)
            scene, image = drawn.scenes[0], drawn.images[0]

    print(f"checkpoint: {path}")
    print(f"picture:    {args.image or f'a held-out scene, drawn with --seed {number}'}")
    print(f"prompt:     {prompt}")
    images = image[None].to(device)
    prompts = pad_prompts([prompt], tokenizer, config.prompt_tokens).to(device)
    runs = []
    for name, rule in zip(names, rules):
        grade = None
        if greedy:
            trace = []
            out = decode_ar(model, images, prompts, length)
        else:
            if args.rule:
                print(f"rule:       {name}")
            with parser.reporting(RuleError, ValueError):
                out, trace = follow(model, lambda: look(model, images, prompts),
                                    window.to(device), rule, args.temperature, number)
        text, passes = tokenizer.decode(out.response(0)), out.passes.item()
        print(f"caption:    {text}")
        if scene and prompt in (DESCRIBE, toy.COUNT):
            wrong = None if text == drawn.texts[0] else "wrong number"
            if prompt == DESCRIBE:
                wrong = toy.mistake(text, scene, board, out.ends[0].item() < out.tokens.shape[1])
            wrong = wrong and f"wrong ({wrong}); one right answer: {drawn.texts[0]}"
            grade = wrong or "fully right"
            print(f"grade:      {grade}")
        print()
        before = window[0]
        for iteration, record in enumerate(trace, 1):
            print(f"{iteration:3d}  {show(record.tokens[0], before, tokenizer)}")
            before = record.tokens[0]
        tokens = min(out.ends[0].item() + 1, out.tokens.shape[1])
        given = 0 if greedy else (window[0, :tokens] != config.mask_id).sum().item()
        print(f"{passes} passes for {tokens - given} response tokens (EOS counted"
              f"{', given ones not' if given else ''}): "
              f"{(tokens - given) / max(passes, 1):.1f} tokens per pass")
        if out.left.item():
            print(f"the limit of passes was reached: {out.left.item()} tokens were committed "
                  "together in the last one")
        runs.append(told(rule.__name__, window[0], trace, tokenizer, caption=text, grade=grade))
    if args.picture:
        with parser.reporting(OSError):
            picture = picture_of(image)
            if args.picture.suffix.lower() == ".html":
                source = args.image.name if args.image else f"a held-out scene, --seed {number}"
                save_viewer(args.picture, decoding(picture, source, prompt, runs))
            else:
                drawing.save_decoding(args.picture, picture, runs)
        print(f"drawn:      {args.picture}")


if __name__ == "__main__":
    main()
