"""Who sees whom, the token shift, and the caches."""
import ast
import copy
import sys
from pathlib import Path

import pytest
import torch
from conftest import MASK, random_inputs, random_model

import mini_dimple
from lab.variants import PrefixMasked
from mini_dimple import Config, Dimple, decode_ar
from train import PRESETS


@pytest.mark.parametrize("causal", [True, False])
def test_each_position_sees_what_its_phase_allows(seed, causal):
    model = random_model(seed)
    x = torch.randn(1, 9, 16, dtype=torch.float64, requires_grad=True)
    hidden, _ = model.transformer(x, causal)
    for i in range(9):
        seen = torch.autograd.grad(hidden[0, i, 0], x, retain_graph=True)[0][0].abs().sum(-1) > 0
        assert seen.tolist() == [j <= i or not causal for j in range(9)]


def test_every_visual_token_sees_the_whole_image(seed):
    model = random_model(seed)
    images, prompt, _ = random_inputs(seed, 1, 4)
    before = model.prefix(images, prompt)[0, :4]
    images[0, :, -1, -1] = 255 - images[0, :, -1, -1]  # the last pixel
    after = model.prefix(images, prompt)[0, :4]
    assert ((before - after).abs().amax(-1) > 0).all()


def test_pixels_come_in_between_minus_one_and_one():
    seen, model = [], random_model(0)
    model.vit.embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images, prompt, _ = random_inputs(0, 2, 4)
    images[0], images[1] = 0, 255
    model.prefix(images, prompt)
    assert (seen[0][0] == -1).all() and (seen[0][1] == 1).all()


def test_a_visual_token_is_a_2x2_block_of_patches():
    """With no ViT blocks and no positions, changing one 8x8 px corner changes exactly one visual
    token."""
    model = random_model(0, vit_layers=0)
    images, prompt, _ = random_inputs(0, 1, 4)
    before = model.prefix(images, prompt)[0, :4]
    images[0, :, :8, 8:] += 1
    changed = (model.prefix(images, prompt)[0, :4] - before).abs().amax(-1) > 0
    assert changed.tolist() == [False, True, False, False]


def test_token_shift_scores_a_token_from_the_position_before_it(seed):
    """Causally, the logits of response[i] depend on response[:i], and the first on the prompt
    alone."""
    model = random_model(seed)
    images, prompt, response = random_inputs(seed, 1, 6)
    before = model(images, prompt, response, causal=True)
    for i in range(6):
        other = response.clone()
        other[0, i] = (other[0, i] + 1) % MASK
        changed = (model(images, prompt, other, causal=True) - before)[0].abs().amax(-1) > 1e-12
        assert changed.tolist() == [j > i for j in range(6)]
    other = prompt.clone()
    other[0, -1] = (other[0, -1] + 1) % MASK
    assert ((model(images, other, response, causal=True) - before)[0, 0].abs() > 1e-12).any()


def test_relative_positions_are_all_that_attention_knows(seed):
    """Rotary positions: a query-key product depends on the distance, not on the place."""
    cos, sin = mini_dimple.rotary_table(40, 8)
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))
    at = lambda x, i: mini_dimple.rotate(x, (cos[i], sin[i]))
    product = lambda i, j: (at(q, i) * at(k, j)).sum()
    torch.testing.assert_close(product(3, 7), product(23, 27))
    assert not torch.isclose(product(3, 7), product(3, 8))


def test_ar_decoding_with_its_cache_equals_decoding_without(seed):
    model = random_model(seed)
    images, prompt, _ = random_inputs(seed, 5, 1)
    out = decode_ar(model, images, prompt, 10)
    tokens = torch.zeros(5, 0, dtype=torch.long)
    for i in range(10):  # the slow, obvious way: the whole sequence again for each token
        window = torch.cat([tokens, torch.zeros(5, 1, dtype=torch.long)], 1)
        logits = model(images, prompt, window, causal=True)[:, -1]
        logits[:, MASK] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    eos = model.config.eos_id
    for row, right, passes in zip(out.tokens.tolist(), tokens.tolist(), out.passes.tolist()):
        end = right.index(eos) if eos in right else 10
        assert row == right[:end] + [eos] * (10 - end)
        assert passes == min(end + 1, 10)


def attention_with_mask(model, images, prompt, response, allowed):
    """Logits of the response by plain softmax attention under a mask (T, T) of what each position
    may see."""
    x = torch.cat([model.prefix(images, prompt), model.embedding(response)], 1)
    B, T, D = x.shape
    rotary = model.cos[:T], model.sin[:T]
    for block in model.blocks:
        qkv = block.qkv(block.attention_norm(x)).view(B, T, 3, block.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = mini_dimple.rotate(q, rotary), mini_dimple.rotate(k, rotary)
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
        x = x + block.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D))
        gate, up = block.gate_up(block.mlp_norm(x)).chunk(2, -1)
        x = x + block.down(torch.nn.functional.silu(gate) * up)
    return model.head(model.norm(x)[:, -response.shape[1] - 1:-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_cast_to_another_dtype_compute_the_same_function(dtype, seed):
    """Up to rounding, and where inputs are small, too: RMSNorm's eps is stated, since PyTorch's
    default depends on the dtype."""
    eps, modules = torch.finfo(dtype).eps, random_model(seed).modules()
    norms = [module for module in modules if isinstance(module, torch.nn.RMSNorm)]
    assert len(norms) == 8
    for norm in norms:
        x = (1e-3 * torch.randn(5, norm.weight.numel(), dtype=torch.float64)).to(dtype)
        wanted = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
        error = norm.to(dtype)(x).double() - wanted
        assert error.norm() <= 2 * eps * wanted.norm() + 1e-6
    model, inputs = random_model(seed, 0.1).to(dtype), random_inputs(seed, 4, 6)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        here, wanted = (m(*inputs, causal=False).double() for m in (model, exact))
    assert (here - wanted).norm() < 30 * eps * wanted.norm() + 1e-6


def test_prefix_mask_is_an_attention_mask(seed):
    """All but the last prompt token see themselves alone; from there on, everything is seen."""
    plain, inputs = random_model(seed), random_inputs(seed, 3, 6)
    model = PrefixMasked(plain.config).double().eval()
    model.load_state_dict(plain.state_dict())
    prefix = 4 + 3 - 1  # visual tokens and prompt without its last token
    allowed = torch.ones(13, 13, dtype=torch.bool)
    allowed[:prefix, prefix:] = False
    with torch.no_grad():
        for causal, mask in ((False, allowed), (True, torch.ones_like(allowed).tril())):
            wanted = attention_with_mask(model, *inputs, mask)
            torch.testing.assert_close(model(*inputs, causal=causal), wanted)


@pytest.mark.parametrize("preset, millions", [("tiny", (0.9, 1.2)), ("small", (11, 14))])
def test_presets(preset, millions):
    model = Dimple(Config(400, 398, 399, **PRESETS[preset]["config"]))
    assert millions[0] <= sum(p.numel() for p in model.parameters()) / 1e6 <= millions[1]
    px, ids = model.config.image_px, torch.zeros(1, 5, dtype=torch.long)
    images = torch.zeros(1, 3, px, px, dtype=torch.uint8)
    assert model(images, ids[:, :3], ids, causal=False).shape == (1, 5, 400)


def test_the_core_file_needs_torch_and_the_standard_library_alone():
    nodes = [*ast.walk(ast.parse(Path(mini_dimple.__file__).read_text()))]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {"torch", *sys.stdlib_module_names}
