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
from lab.shell import Parser, options, pick_device, reporting, script
from lab.trace import NOTHING_NAMED, follow, show, told
from lab.viewer import decoding, picture_of, save_viewer
from mini_dimple import MAX_POSITIONS, decode_ar
from rules import RuleError, named, resolve, resolve_look

TRAINED = Path("out/mini_dimple.pt")


def parse(argv=None):
    parser = Parser(description=__doc__)
    option = parser.add_argument
    option("--image", type=Path, metavar="F",
           help="default: a held-out toy scene, and its caption is graded")
    option("--prompt", metavar="TEXT", help="default: the most frequent one in training, for the "
           f"toy set {DESCRIBE!r}")
    option("--rule", action="append", metavar="RULE", help="which positions to commit (default: "
           f"confident:{THRESHOLD}); one of {', '.join(named())}, or path/to/mine.py; several "
           "--rule decode the same picture")
    option("--prior", metavar="TEXT", default="",
           help="how the response begins: _ is one free token, other text is given")
    option("--picture", type=Path, metavar="F",
           help="show the decoding: a page for the browser (.html) or an animation (.gif)")
    options(parser, "look", "length", "temperature", "device",
            checkpoint=dict(default=TRAINED if TRAINED.exists() else SHIPPED, help="default: "
                            f"{TRAINED} if there is one, else the weights of this repository"),
            seed=dict(default=random.randrange(10_000),
                      help="of the scene and of sampling (default: a new one each time)"))
    return parser, parser.parse_args(argv)


def read_picture(args, checkpoint):
    """The image (3, H, H) to be captioned and its toy scene, a Split of one; None of a file."""
    board = toy.of(checkpoint.origin)
    if args.image is None and board is None:
        raise ValueError(f"{args.checkpoint} was trained on your own pictures: name one with "
                         "--image")
    if args.image is None:
        scene = toy.examples(board, 1, args.seed, held_out=True,
                             instruction=toy.COUNT if args.prompt == toy.COUNT else DESCRIBE)
        return scene.images[0], scene
    image = folder.load_image(args.image, checkpoint.model.config.image_px)
    if board:
        print(f"warning: {args.checkpoint} has seen nothing but coloured shapes on a plain ground: "
              "a caption of any other picture means nothing; docs/pictures.md shows how to train "
              "on your own", file=sys.stderr)
    return image, None


def make_prompt(text, config, tokenizer):
    """Ids (1, P). Raises ValueError for a longer or shorter prompt than any in training."""
    tokens = len(tokenizer.encode(text))
    if not 0 < tokens <= config.prompt_tokens:
        raise ValueError(f"--prompt {text!r}: {tokens} tokens; this model was trained on prompts "
                         f"of 1 to {config.prompt_tokens}")
    return pad_prompts([text], tokenizer, config.prompt_tokens)


def make_window(prior, length, config, tokenizer):
    """A window (1, length) of ids that begins with the prior; [MASK] where a token is free. White
    space before a `_` belongs to the free token, as in the tokenizer's words. Raises ValueError if
    it does not fit."""
    length, ids = length or config.window, []
    for part in re.split(r"(\s*_)", prior):
        ids += [tokenizer.mask_id] if part.strip() == "_" else tokenizer.encode(part)
    visual = (config.image_px // config.patch_px // 2) ** 2
    longest = MAX_POSITIONS - visual - config.prompt_tokens
    if not len(ids) <= length <= longest:
        raise ValueError(f"--length {length}: must be at most {longest}, and at least the "
                         f"{len(ids)} tokens of the --prior")
    if length > config.window:
        print(f"warning: --length {length}: the longest window in training had {config.window} "
              "tokens; the further beyond it, the worse the captions", file=sys.stderr)
    return torch.tensor([ids + [tokenizer.mask_id] * (length - len(ids))])


def grade(caption, ended, prompt, scene, board):
    """What a caption of a toy scene is worth, in words; None of other pictures and prompts."""
    if scene is None or prompt not in (DESCRIBE, toy.COUNT):
        return None
    wrong = None if caption == scene.texts[0] else "wrong number"
    if prompt == DESCRIBE:
        wrong = toy.mistake(caption, scene.scenes[0], board, ended)
    return f"wrong ({wrong}); one right answer: {scene.texts[0]}" if wrong else "fully right"


def print_passes(out, trace, window, tokenizer):
    """Each iteration's window as text, and how many tokens came of a pass."""
    before = window[0]
    for iteration, record in enumerate(trace, 1):
        print(f"{iteration:3d}  {show(record.tokens[0], before, tokenizer)}")
        before = record.tokens[0]
    tokens = min(out.ends[0].item() + 1, out.tokens.shape[1])
    given = (window[0, :tokens] != tokenizer.mask_id).sum().item()
    passes, decoded = out.passes.item(), tokens - given
    print(f"{passes} passes for {decoded} response tokens (EOS counted"
          f"{', given ones not' if given else ''}): {decoded / max(passes, 1):.1f} tokens per pass")
    if trace and trace.names_nothing():
        print(f"hint: {NOTHING_NAMED}")
    if out.left.item():
        print(f"the limit of iterations was reached: its last one committed {out.left.item()} "
              "tokens together")


@script
def main(argv=None):
    _, args = parse(argv)
    with reporting(ValueError, OSError):
        if args.picture and args.picture.suffix.lower() not in (".html", ".gif"):
            raise ValueError(f"--picture {args.picture}: must end in .html or .gif")
        device, names = pick_device(args.device), args.rule or [f"confident:{THRESHOLD}"]
        rules, look = [resolve(name) for name in names], resolve_look(args.look)
        model, tokenizer, origin = checkpoint = load(args.checkpoint, device)
        ar = origin["phase"] == "ar"
        if ar and (args.rule or args.prior or args.temperature or args.picture):
            raise ValueError(f"{args.checkpoint} holds weights of the AR phase, which decode "
                             "greedily, left to right: --rule, --prior, --temperature and "
                             "--picture are for diffusion")
        text = origin["prompt"] if args.prompt is None else args.prompt
        prompt = make_prompt(text, model.config, tokenizer).to(device)
        window = make_window(args.prior, args.length, model.config, tokenizer).to(device)
        image, scene = read_picture(args, checkpoint)
    source = f"a held-out scene, drawn with --seed {args.seed}"
    if args.image:
        source = args.image.name  # without its folder: the page is made to be shared
    print(f"checkpoint: {args.checkpoint}\npicture:    {args.image or source}\nprompt:     {text}")
    images, runs = image[None].to(device), []
    for name, rule in zip(names, rules):
        if ar:
            name, trace = "greedy, left to right", []
            out = decode_ar(model, images, prompt, window.shape[1])
        else:
            with reporting(RuleError):
                out, trace = follow(model, look(model, images, prompt), window, rule,
                                    args.temperature, args.seed)
        caption, ended = tokenizer.decode(out.response(0)), out.ends[0].item() < out.tokens.shape[1]
        worth = grade(caption, ended, text, scene, toy.of(origin))
        print(f"rule:       {name}\ncaption:    {caption}")
        print(f"grade:      {worth}\n" if worth else "")
        print_passes(out, trace, window, tokenizer)
        runs.append(told(name, window[0], trace, tokenizer, caption=caption, grade=worth))
    if args.picture:
        with reporting(OSError):
            args.picture.parent.mkdir(parents=True, exist_ok=True)
            if args.picture.suffix.lower() == ".html":
                save_viewer(args.picture, decoding(picture_of(image), source, text, runs))
            else:
                drawing.save_decoding(args.picture, picture_of(image), runs)
        print(f"drawn:      {args.picture}")


if __name__ == "__main__":
    main()
