"""Checks exercise 10 row by row."""
import torch

from exercises.checks import exercise, scenes, shipped, teach, teach_tensor
from mini_dimple import draw_t, forward_process

__all__ = ["test_exercise"]
B = 6
MASK = shipped()[0].config.mask_id
ORDER = ("torch.cat([x, x]) and x.repeat(2, ...) put the twins B rows apart, "
         "x.repeat_interleave(2, 0) side by side: do not mix them.")
NAMES = "images", "prompt", "response", "noisy", "masked", "t"


def case(seed):
    """-> what goes in: the first scenes with different prompts, so that rows can be told apart; a
    level of exactly 1 among them."""
    some, g = scenes(64), torch.Generator().manual_seed(seed)
    t = draw_t(B, "cpu", g)
    t[-1] = 1.0
    prompts, responses = some.prompts[:B] + torch.arange(B)[:, None] % 3, some.responses[:B]
    masked = forward_process(responses, t, MASK, g)[1]
    return [some.images[:B], prompts, responses, masked, t]


def run(solution, given):
    before = [tensor.clone() for tensor in given]
    answer = solution.twins(*given, MASK)
    teach(isinstance(answer, tuple) and len(answer) == 6,
          f"twins must return six tensors: {', '.join(NAMES)}.")
    for name, tensor, like in zip(NAMES, answer, (*given[:3], given[2], *given[3:])):
        teach_tensor(tensor, (2 * B, *like.shape[1:]), like.dtype, name)
    teach(all(map(torch.equal, given, before)), "Your function writes into its arguments.")
    return answer


def check_rows_belong_together(solution):
    given = case(0)
    images, prompt, response, noisy, masked, t = run(solution, given)
    teach(not (response == MASK).any(), "The response that you return has [MASK]s in it: it is the "
          "target of the loss and must be the clean one.")
    partly = masked.any(1) & ~masked.all(1)
    for row in range(2 * B):
        teach(not (partly[row] and torch.equal(noisy[row] == MASK, ~masked[row])),
              f"Row {row}: noisy has its [MASK]s where the OTHER twin's mask is.")
    teach(not ((noisy == MASK).all(1) & ~masked.all(1)).any(),
          "A twin is masked everywhere: you masked the noisy response once more. Start from the "
          "clean response and mask the complement.")
    teach(torch.equal(noisy == MASK, masked), "noisy must be [MASK] exactly where masked is True.")
    teach(torch.equal(noisy[~masked], response[~masked]),
          "What is not masked in a row's noisy response must be that row's own response. Are the "
          "rows in one order everywhere? " + ORDER)
    for row in range(2 * B):
        owner = next((b for b in range(B) if torch.equal(images[row], given[0][b])), None)
        teach(owner is not None and torch.equal(prompt[row], given[1][owner])
              and torch.equal(response[row], given[2][owner]),
              f"Row {row}: image, prompt and response are of different examples. The model would "
              "learn to describe one picture with the words of another. " + ORDER)


def pairs(given, answer):
    """-> for each example, its two rows."""
    same = lambda row, b: all(torch.equal(answer[i][row], given[i][b]) for i in (2, 0))
    rows = [[row for row in range(2 * B) if same(row, b)] for b in range(B)]
    teach(all(len(two) == 2 for two in rows), "Each example must enter exactly twice.")
    return rows


def check_each_token_is_predicted_once(solution):
    given = case(1)
    *_, drawn, levels = given
    *_, masked, t = answer = run(solution, given)
    for b, (one, two) in enumerate(pairs(given, answer)):
        teach(torch.equal(masked[one], ~masked[two]),
              "The two masks of an example are not complements: each token must be masked in "
              "exactly one of the twins. Do the masks come in the same order as the other tensors: "
              "B rows apart (torch.cat, repeat) or side by side (repeat_interleave)?")
        teach(any(torch.equal(masked[row], drawn[b]) for row in (one, two)),
              "One of the twins must have the mask that was drawn.")
        own = one if torch.equal(masked[one], drawn[b]) else two
        twin = two if own == one else one
        teach(torch.isclose(t[own], levels[b]),
              "The row with the mask that was drawn keeps its level t.")
        teach(0.4 < levels[b] < 0.6 or not torch.isclose(t[twin], levels[b]),
              "The complement has the same t as the mask. Where t is masked in one, 1 - t is "
              "masked in the other, and the loss divides by the level.")
        teach(t[twin] > 0, "At t = 1 the complement's level is 0, and the loss divides by it: keep "
              "it at least EPS (clamp).")
        teach(torch.isclose(t[twin], (1 - levels[b]).clamp(min=1e-3)),
              "The complement's level is 1 - t, at least EPS.")


def show(solution):
    """How often a token is predicted, by level, and what it weighs."""
    def times(*masks):
        """-> which share of the tokens is in none, one and two of two masks."""
        count = sum(mask.long() for mask in masks).flatten().bincount(minlength=3)
        return " / ".join(f"{n / count.sum():4.0%}" for n in count)
    some, lines = scenes(64)[:B], []
    for level in (0.05, 0.3, 0.5, 0.7, 0.95):
        t, g = torch.full((B,), level), torch.Generator().manual_seed(0)
        responses = scenes(64).responses[:B]
        one, two = (forward_process(responses, t, MASK, g)[1] for _ in "12")
        given = [*some[:2], responses, one, t]
        *_, masked, levels = answer = run(solution, given)
        first, second = map(list, zip(*pairs(given, answer)))
        weights = ", ".join(f"{1 / levels[row]:.1f}" for row in (first[0], second[0]))
        lines.append(f"{level:5.2f}  {one.double().mean():8.0%}    "
                     f"{times(masked[first], masked[second])}    {times(one, two)}    {weights}")
    return "\n".join([
        f"Of the tokens of {B} responses, how many are predicted by one mask, how many never, "
        "once, "
        "twice by two:", "    t  one mask    your twins            two drawn apart       weights "
        "1/t of the twins", *lines,
        "Over all t: one mask half of them, two drawn apart a third never. What does that cost in "
        "passes, and what", "may it do to the loss that 1/t weighs?"])


test_exercise = exercise(check_rows_belong_together, check_each_token_is_predicted_once,
                         show=show)
