import pytest
import torch

from mini_dimple import Config, Dimple

EOS, MASK = 18, 19


def small_config(**changes):
    """A model small enough to run thousands of times: 4 visual tokens, 3 prompt tokens, 20 ids."""
    return Config(**{**dict(vocab_size=20, eos_id=EOS, mask_id=MASK, image_px=16, patch_px=4, vit_width=16, vit_layers=1,
                            width=16, layers=2, heads=2, window=12), **changes})


def random_model(seed, spread=0.5, **changes):
    """Random weights in float64; `spread` makes the distributions peaked enough for confidences to differ."""
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


@pytest.fixture(params=range(3))
def seed(request):
    return request.param


def refused_by(main):
    """-> refused(capsys, *words): the one line on stderr with which `main` ends on these words; exit status 2, no traceback."""
    def refused(capsys, *words):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count("\n") == 1 and "Traceback" not in err
        return err
    return refused
