import os
import random
import signal

import pytest
import torch

from lab.evaluate import Floor
from lab.trace import Trace
from mini_dimple import Config, Dimple, Step, confident, decode, prefilled
from tokenizer import Tokenizer

EOS, MASK, VOCAB = 18, 19, 20


@pytest.fixture(scope="session", autouse=True)
def compiled_here(tmp_path_factory):
    """torch.compile's cache of kernels is this run's own: of a cache that a run held to another
    instruction set (ATEN_CPU_CAPABILITY) has written, entries are taken, and crash."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Started by `nohup ... &`, pytest and what it starts would ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def few_scenes_for_the_floor():
    """500 scenes, as a run takes them, would be most of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Floor.__init__, "__defaults__", (50,))
        patch.setattr("lab.__main__.SAMPLES", 20)  # likewise the board's distances,
        patch.setattr("lab.board.ONE_BY_ONE", "maskgit:12")  # and the 48 passes of its criterion
        yield


def pytest_addoption(parser):
    parser.addoption("--rule", metavar="RULE", action="append", help="check this decoding rule and "
                     "nothing else (repeatable): a file of yours, as in "
                     "`python -m pytest tests/test_rules.py --rule mine.py:7`")


def pytest_collection_modifyitems(config, items):
    """With --rule, the tests that take any rule, and no other."""
    if config.getoption("--rule"):
        others = [item for item in items if "any_rule" not in item.fixturenames]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def small_config(**changes):
    """A model small enough to run thousands of times: 4 visual tokens, 3 prompt tokens, 20 ids."""
    return Config(**{**dict(vocab_size=VOCAB, eos_id=EOS, mask_id=MASK, image_px=16, patch_px=4,
                            vit_width=16, vit_layers=1, width=16, layers=2, heads=2, window=12),
                     **changes})


def random_model(seed, spread=0.5, **changes):
    """Random weights in float64; `spread` makes the distributions peaked enough for confidences
    to differ."""
    torch.manual_seed(seed)
    model = Dimple(small_config(**changes)).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=spread)
    return model


def random_inputs(seed, B, W, P=3):
    """images (B, 3, 16, 16), prompt (B, P), response (B, W) of ordinary ids."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 256, (B, 3, 16, 16), dtype=torch.uint8, generator=g),
            torch.randint(0, EOS, (B, P), generator=g), torch.randint(0, EOS, (B, W), generator=g))


def random_window(seed, B, W):
    """Windows with priors: each position given (any id but [MASK], EOS too) with a probability of
    the example's own."""
    rng = random.Random(seed)
    shares = [rng.choice([0, 0, 0.2, 0.6, 1]) for _ in range(B)]
    return torch.tensor([[rng.randrange(MASK) if rng.random() < share else MASK for _ in range(W)]
                         for share in shares])


def random_case(seed, B, W, priors=True, **changes):
    """What `decoded` takes: a random model, images, prompts, windows with priors or without."""
    images, prompt, _ = random_inputs(seed, B, W)
    window = random_window(seed, B, W) if priors else torch.full((B, W), MASK)
    return random_model(seed, **changes), images, prompt, window


def alone(case, b):
    """Example b of a case."""
    model, *inputs = case
    return model, *(x[b:b + 1] for x in inputs)


def random_step(seed, B=4, W=9):
    """The Step of an iteration in which some tokens are given, some committed, and the first
    position is masked."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, W, VOCAB, generator=g, dtype=torch.double)
    state = torch.randint(0, 4, (B, W), generator=g)  # 0 given, 1 committed, else masked
    state[:, 0] = 3
    tokens = torch.where(state > 1, MASK, torch.randint(0, EOS, (B, W), generator=g))
    return Step(0, 2 * W, tokens, state == 0, logits, lambda tokens: logits, MASK, EOS, {})


def stateless(logits_of):
    """A function of the window alone, tokens -> logits, as a look."""
    return lambda tokens, state=None: (logits_of(tokens), None)


def traced(look, window, config, *rest, **options):
    """`decode`, and what it did as `.trace`, a Trace."""
    trace = Trace(window)
    out = decode(look, window, config, *rest, watch=trace, **options)
    out.trace = trace
    return out


def decoded(model, images, prompt, window, rule=confident(0.9), look=prefilled, **options):
    """`traced`, with a look of its own."""
    return traced(look(model, images, prompt), window, model.config, rule, **options)


def missing(what):
    """Skips a test that needs more than README's set-up installs; fails it where .ci/run has seen
    to it that nothing is missing."""
    (pytest.fail if os.environ.get("NO_SKIPS") else pytest.skip)(f"needs {what}")


@pytest.fixture(params=range(3))
def seed(request):
    return request.param


def refused_by(main):
    """-> refused(capsys, *words): the one line on stderr with which `main` ends on these words;
    exit status 2, no traceback."""
    def refused(capsys, *words):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count("\n") == 1 and "Traceback" not in err
        return err
    return refused


# ---------------------------------------------------------------- for tests that train

def hurry(patch):
    """A small model, few examples in small batches; checkpoints every 5 steps, the loss above its
    floor every 10."""
    import lab.run
    import train
    patch.setitem(train.PRESETS["tiny"], "config", dict(vit_width=32, width=64, layers=2, heads=2))
    patch.setitem(train.PRESETS["tiny"], "batch_size", 8)
    patch.setitem(train.PRESETS["tiny"], "examples", 200)
    patch.setattr(lab.run, "SAVE_EVERY", 5)
    patch.setattr(lab.run, "FLOOR_EVERY", 10)


@pytest.fixture
def quick(monkeypatch):
    hurry(monkeypatch)


# ---------------------------------------------------------------- for tests of checkpoints

def untrained(texts):
    """A small model of random weights, and a tokenizer that knows these texts."""
    tokenizer = Tokenizer.train([*texts] * 2)
    torch.manual_seed(0)
    return Dimple(Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id, width=32,
                         vit_width=32, layers=1)), tokenizer
