"""Checks exercise 10 row by row."""
import torch

from exercises.checks import MASK, SOME, ask, teach, teach_tensor, teach_tuple
from mini_dimple import draw_t, forward_process

B = 6
ORDER = ("Are the rows in one order everywhere? torch.cat([x, x]) puts the twins B rows apart, "
         "x.repeat_interleave(2, 0) side by side.")
NAMES = "images", "prompt", "response", "noisy", "masked", "t"


def case(t, g):
    """-> what goes in: the first scenes with different prompts, so that rows can be told apart."""
    prompts, responses = SOME.prompts[:B] + torch.arange(B)[:, None] % 3, SOME.responses[:B]
    return [SOME.images[:B], prompts, responses, forward_process(responses, t, MASK, g)[1], t]


def run(solution, given):
    """What `twins` returns, its form checked -> prompt, response, noisy, masked (B, 2, ...) and t
    (B, 2), of each example the row with the mask that was drawn first."""
    answer = teach_tuple(ask(solution.twins, *given, MASK), *NAMES)
    for name, tensor, like in zip(NAMES, answer, (*given[:3], given[2], *given[3:])):
        teach_tensor(tensor, (2 * B, *like.shape[1:]), like.dtype, name)
    rows = [[row for row in range(2 * B) if torch.equal(answer[0][row], image)]
            for image in given[0]]
    teach(all(len(two) == 2 for two in rows), "Each example must enter exactly twice.")
    rows = [two if torch.equal(answer[4][two[0]], drawn) else two[::-1]
            for two, drawn in zip(rows, given[3])]
    return [tensor[torch.tensor(rows)] for tensor in answer[1:]]


def every_row(solution):
    g = torch.Generator().manual_seed(0)
    t = draw_t(B, "cpu", g)
    t[-1] = 1.0
    _, prompts, responses, drawn, _ = given = case(t, g)
    prompt, response, noisy, masked, levels = run(solution, given)
    teach((prompt == prompts[:, None]).all() and (response == responses[:, None]).all(),
          "In some row image, prompt and response are not of one example, or the response is not "
          f"the clean one, which is the target of the loss. {ORDER}")
    teach((masked == torch.stack([drawn, ~drawn], 1)).all(),
          f"An example's two masks are not the one that was drawn and its complement. {ORDER}")
    for b, wanted in enumerate(torch.stack([t, (1 - t).clamp(min=1e-3)], 1)):
        teach(torch.allclose(levels[b], wanted), f"Of t = {t[b]:.3f} the levels of the two are "
              "{:.3f} and {:.3f}. They must be t and 1 - t, and at least EPS.".format(*levels[b]))
    teach(torch.equal(noisy, response.masked_fill(masked, MASK)), "noisy must be the row's own "
          "response with [MASK] where its own mask is True, not its twin's. Start from the clean "
          f"response. {ORDER}")


CHECKS = [every_row]


def show(solution):
    """How often a token is predicted, by level, and what it weighs."""
    def times(*masks):
        """-> which share of the tokens is in none, one and two of two masks."""
        count = sum(mask.long() for mask in masks).flatten().bincount(minlength=3)
        return " / ".join(f"{n / count.sum():4.0%}" for n in count)
    yield (f"Of the tokens of {B} responses, how many are predicted by one mask, how many never, "
           "once, twice by two:")
    yield "    t  one mask    your twins            two drawn apart       weights 1/t of the twins"
    for level in (0.05, 0.3, 0.5, 0.7, 0.95):
        t, g = torch.full((B,), level), torch.Generator().manual_seed(0)
        given, other = case(t, g), forward_process(SOME.responses[:B], t, MASK, g)[1]
        *_, masked, levels = run(solution, given)
        weights = ", ".join(f"{1 / one:.1f}" for one in levels[0])
        yield (f"{level:5.2f}  {given[3].double().mean():8.0%}    {times(*masked.unbind(1))}    "
               f"{times(given[3], other)}    {weights}")
    yield ("Over all t: one mask half of them, two drawn apart a third never. What does that cost "
           "in passes, and what\nmay it do to the loss that 1/t weighs?")
