"""Muon against its definition in float64 and against PyTorch's; that it learns its state from a
checkpoint."""
import copy
import io

import pytest
import torch

from lab.training import Muon, autocast, low_precision, orthogonalise

SHAPES = [(6, 6), (3, 8), (3, 8), (9, 2), (6, 6), (128, 48), (48, 128), (1, 5)]


def matrices(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def update(parameters, optimizer, number):
    """One step by gradients of this number."""
    for parameter, gradient in zip(parameters, matrices(number, [p.shape for p in parameters])):
        parameter.grad = gradient.detach()
    optimizer.step()


def newton_schulz(matrix):
    """One matrix, float64, the odd polynomial written out: x -> a x + b x x' x + c x x' x x' x."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


@pytest.mark.parametrize("shape", sorted(set(SHAPES)))
def test_orthogonalise_is_its_iteration_to_1e_5(shape):
    stack = torch.stack([m.detach() for m in matrices(0, [shape] * 4)])
    stack *= torch.tensor([1e-6, 1.0, 3e4, 1e-2])[:, None, None]
    for one, matrix in zip(orthogonalise(stack, torch.float32), stack):
        wanted = newton_schulz(matrix)
        assert (one.double() - wanted).norm() <= 1e-5 * wanted.norm()
        assert 0.6 < torch.linalg.svdvals(wanted).max() < 1.3
    assert not orthogonalise(torch.zeros(2, *shape), torch.float32).any(), "no gradient, no update"


def test_an_update_is_that_of_pytorch_to_2_percent():
    """PyTorch's computes in bf16, matrix by matrix; ours in float32, in stacks. Same gradients,
    some steps, rates that change."""
    # as the model's; bf16 is worse on tiny ones
    shapes = [(128, 384), (512, 128), (128, 48), (128, 128), (128, 128), (512, 128)]
    ours, theirs = matrices(0, shapes), matrices(0, shapes)
    mine = Muon(ours, 0.02, momentum=0.9)
    library = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, momentum=0.9)
    for step in range(5):
        before = [m.detach().clone() for m in theirs]
        with torch.no_grad():
            for a, b in zip(ours, theirs):
                a.copy_(b)  # each step is compared from the same weights
        for parameters, optimizer in ((ours, mine), (theirs, library)):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (step + 1)
            update(parameters, optimizer, step)
        for a, b, old in zip(ours, theirs, before):
            assert (a - b).norm() <= 0.02 * (b - old).norm()


def test_a_matrix_moves_as_if_it_were_alone(seed):
    together, alone = matrices(seed), matrices(seed)
    optimizer, others = Muon(together, 0.02, momentum=0.9), [Muon([m], 0.02, 0.9) for m in alone]
    for step in range(3):
        update(together, optimizer, step)
        for b, gradient, other in zip(alone, matrices(step), others):
            b.grad = gradient.detach()
            other.step()
    for a, b in zip(together, alone):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_momentum_survives_a_checkpoint():
    going_on, file = matrices(0), io.BytesIO()
    optimizer = Muon(going_on, 0.02, momentum=0.9)
    update(going_on, optimizer, 1)
    resumed = copy.deepcopy(going_on)
    again = Muon(resumed, 0.02, momentum=0.9)
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for parameters, one in ((going_on, optimizer), (resumed, again)):
        update(parameters, one, 2)
    assert all(torch.equal(a, b) for a, b in zip(going_on, resumed))


@pytest.mark.parametrize("native", [True, False])
def test_bf16_only_where_cuda_computes_it_natively(native, monkeypatch):
    """A T4 emulates bf16: `is_bf16_supported` says so only if asked without emulation. CPUs compute
    in float32."""
    said = lambda including_emulation=True: including_emulation or native
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", said)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert low_precision(cuda) == (torch.bfloat16 if native else torch.float32)
    assert autocast(cuda)._enabled == native and not autocast(cpu)._enabled
