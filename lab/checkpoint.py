"""Checkpoint files: weights, architecture and tokenizer, and where they come from."""
import contextlib
import io
import os
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from lab.variants import PrefixMasked
from mini_dimple import Config, Dimple
from tokenizer import Tokenizer

ROOT = Path(__file__).absolute().parent.parent
SHIPPED, SHIPPED_AR, SHIPPED_WEAK = (
    ROOT / "weights" / name for name in ("mini_dimple.pt", "ar_phase.pt", "weak.pt"))
FORMAT = "mini-dimple checkpoint 2"


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
            state = torch.load(file, map_location="cpu", weights_only=True)
            found = state["format"]
        except Exception as error:  # foreign and damaged files fail in many ways
            raise ValueError(f"{path}: damaged, or not written by Mini-Dimple") from error
    if found != wanted:
        raise ValueError(f"{path}: its format is {found!r}; this code reads {wanted!r}")
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
    tokenizer: Tokenizer
    origin: dict


@contextlib.contextmanager
def fitting(path):
    """Inside, what fails is a file that does not fit the code: ValueError, with its name."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: it does not fit this code ({error}); train anew, or take the "
                         "code that wrote it") from error


def load(path, device="cpu"):
    """A checkpoint that `save` wrote -> model, tokenizer, origin. Raises OSError or ValueError, as
    `read_state`, and ValueError for contents that do not fit this code, or one another."""
    state = read_state(path, FORMAT)
    with fitting(path):
        tokenizer, config = Tokenizer(state["merges"]), Config(**state["config"])
        for name in ("vocab_size", "eos_id", "mask_id"):
            if getattr(config, name) != getattr(tokenizer, name):
                raise ValueError(f"{name} is not its tokenizer's")
        kind = PrefixMasked if state["origin"].get("prefix_mask") else Dimple
    model = kind(config)  # what fails here is the code
    with fitting(path):
        model.load_state_dict(state["weights"])
        if not all(weight.isfinite().all() for weight in model.parameters()):
            raise ValueError("its weights are not finite")
    return Checkpoint(model.to(device).eval(), tokenizer, state["origin"])
