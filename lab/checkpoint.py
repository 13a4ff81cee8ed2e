"""Checkpoint files: weights, architecture and tokenizer, and where they come from.

Needs `mini_dimple` and `tokenizer` alone, and takes ours, so that it works from any folder, beside
a reader's own tokenizer.py, data.py or rules.py, too."""
import importlib.util
import io
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import torch

from lab.variants import PrefixMasked
from mini_dimple import MAX_POSITIONS, Config, Dimple

ROOT = Path(__file__).absolute().parent.parent
SHIPPED, SHIPPED_AR, SHIPPED_WEAK = (
    ROOT / "weights" / name for name in ("mini_dimple.pt", "ar_phase.pt", "weak.pt"))
FORMAT = "mini-dimple checkpoint 2"
RANGES = {  # field of Config -> smallest and largest value
    "vocab_size": (258, 2 ** 20), "eos_id": (256, 2 ** 20), "mask_id": (257, 2 ** 20),
    "image_px": (2, 4096), "patch_px": (1, 2048), "vit_width": (1, 2 ** 16),
    "vit_layers": (1, 1000), "width": (1, 2 ** 16), "layers": (1, 1000), "heads": (1, 2 ** 16),
    "prompt_tokens": (1, MAX_POSITIONS), "window": (1, MAX_POSITIONS)}


def our_tokenizer():
    """`Tokenizer` of our tokenizer.py, whichever module of that name Python would import here."""
    path, name = ROOT / "tokenizer.py", "tokenizer"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin != str(path):
        name = "mini_dimple_tokenizer"
        spec = importlib.util.spec_from_file_location(name, path)
    if name not in sys.modules:
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name].Tokenizer


def write(path, save):
    """`save(file)` into a file that appears at `path` whole or not at all. Raises OSError, of a
    full disk say, that names it."""
    path, content = Path(path), io.BytesIO()
    temporary = path.with_name(path.name + ".tmp")
    save(content)  # in memory first: torch.save hides a failing disk behind an error of its own
    try:
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_state(path, wanted):
    """The dict in a file written by `torch.save`, its tensors on the CPU. Raises OSError if it
    cannot be read, ValueError if it is damaged, holds more than tensors and plain values, or is of
    another format than `wanted`."""
    with open(path, "rb") as file:
        try:
            state = dict(torch.load(file, map_location="cpu", weights_only=True))
            found = state["format"]
        except Exception as error:  # foreign and damaged files fail in many ways
            raise ValueError(f"{path}: damaged, or not written by Mini-Dimple") from error
    if found != wanted:
        raise ValueError(f"{path}: its format is {found!r:.60}; this code reads {wanted!r}")
    return state


def save(path, model, tokenizer, origin):
    """Write a checkpoint. `origin`: plain values that say where the weights come from, among them
    phase ("ar" or "diffusion", the last one trained), trained_on (a preset's toy set, or
    "pictures"), prompt (the most frequent one) and prefix_mask."""
    state = dict(format=FORMAT, config=asdict(model.config), merges=tokenizer.merges,
                 origin=origin, weights=model.state_dict())
    write(path, lambda file: torch.save(state, file))


class Checkpoint(NamedTuple):
    model: Dimple
    tokenizer: object
    origin: dict


def load(path, device="cpu"):
    """A checkpoint that `save` wrote -> model, tokenizer, origin. Raises OSError or ValueError, as
    `read_state`, and ValueError, with what does not fit, for contents that this code cannot use."""
    state = read_state(path, FORMAT)
    try:
        for name, kind in (("merges", list), ("config", dict), ("origin", dict), ("weights", dict)):
            if not isinstance(state.get(name), kind):
                raise ValueError(f"{name}: expected a {kind.__name__}, got "
                                 f"{type(state.get(name)).__name__}")
        tokenizer = our_tokenizer()(state["merges"])
        config = read_config(state["config"], tokenizer)
        origin = read_origin(state["origin"])
        kind = PrefixMasked if origin.get("prefix_mask") else Dimple
        weights = fitting(state["weights"], kind, config)
        model = kind(config)
        model.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:  # RuntimeError: of sparse tensors and the like
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: damaged weights: {broken[0]} holds numbers that are not finite")
    return Checkpoint(model.to(device).eval(), tokenizer, origin)


def read_config(values, tokenizer):
    """A dict -> Config. Raises ValueError for fields, types and ranges that cannot be, for sizes
    that do not go into one another, and for ids that are not the tokenizer's."""
    names = {field.name for field in fields(Config)}
    wrong = ("missing", names - set(values)), ("unknown", set(values) - names)
    if any(some for _, some in wrong):
        raise ValueError("config: " + "; ".join(
            f"{words} {', '.join(sorted(map(str, some)))}" for words, some in wrong if some))
    for name, (low, high) in RANGES.items():
        if type(values[name]) is not int or not low <= values[name] <= high:
            raise ValueError(f"config: {name} is {values[name]!r:.60}; expected a whole number "
                             f"from {low} to {high}")
    config = Config(**values)
    for name in ("vocab_size", "eos_id", "mask_id"):
        if values[name] != getattr(tokenizer, name):
            raise ValueError(f"config: {name} is {values[name]}; its tokenizer's is "
                             f"{getattr(tokenizer, name)}")
    if config.image_px % (2 * config.patch_px):
        raise ValueError(f"config: image_px is {config.image_px}; 2 x 2 patches of "
                         f"{config.patch_px} px (patch_px) do not fill that")
    for name in ("width", "vit_width"):
        if values[name] % config.heads:
            raise ValueError(f"config: {config.heads} heads do not divide {name}, {values[name]}")
    if config.width // config.heads % 2:
        raise ValueError(f"config: width {config.width} over {config.heads} heads is odd; rotary "
                         "positions turn pairs of channels")
    visual = (config.image_px // config.patch_px // 2) ** 2
    positions = visual + config.prompt_tokens + config.window
    if positions > MAX_POSITIONS:
        raise ValueError(f"config: picture, prompt and window have {positions} positions; at most "
                         f"{MAX_POSITIONS} are possible")
    return config


def read_origin(origin):
    """Raises ValueError unless it says what sample.py and the lab go by."""
    for name, wanted in (("phase", ("ar", "diffusion")), ("trained_on", None), ("prompt", None)):
        value = origin.get(name)
        if not isinstance(value, str) or (wanted and value not in wanted):
            raise ValueError(f"origin: {name} is {value!r:.60}; expected "
                             + (" or ".join(map(repr, wanted)) if wanted else "a text"))
    if not isinstance(origin.get("prefix_mask", False), bool):
        raise ValueError(f"origin: prefix_mask is {origin['prefix_mask']!r:.60}; expected True or "
                         "False")
    steps, figures = origin.get("steps", 1), origin.get("figures", {})
    if type(steps) is not int or steps < 1 or not isinstance(figures, dict):
        raise ValueError("origin: expected steps, 1 or more, and figures, a dict; got "
                         f"{steps!r:.60} and {figures!r:.60}")
    return origin


def fitting(weights, kind, config):
    """The weights under the model's own names: without the prefixes that torch.compile and
    DistributedDataParallel put before them. Raises ValueError if they are not the model's, with
    which and how."""
    found = {}
    for name, weight in weights.items():
        name = str(name)
        while name.startswith(("_orig_mod.", "module.")):
            name = name.partition(".")[2]
        found[name] = weight
    with torch.device("meta"):  # shapes alone: a config may ask for more than fits in memory
        wanted = kind(config).state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is not a weight of it" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        weight, shape = found[name], tuple(wanted[name].shape)
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            wrong.append(f"{name} is no tensor of real numbers")
        elif tuple(weight.shape) != shape:
            wrong.append(f"{name} is {tuple(weight.shape)}, where its config makes {shape}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError("the weights do not fit this code's model: "
                         f"{'; '.join(sorted(wrong)[:3])}{more}")
    return found
