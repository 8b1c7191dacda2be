"""What to try in the training loop: lines that are typed there, and tests that decide between causes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscope.diagnose.words import MODEL, number, plural, typed
from gradscope.types import LayerKey, Remedy


def clip(norm: float) -> Remedy:
    """Clipping by norm at a threshold from the run's own records."""
    code = f"torch.nn.utils.clip_grad_norm_({MODEL}.parameters(), max_norm={number(norm)})"
    return Remedy("clip by norm, between backward() and the optimizer's step", code)


def rate(factor: float) -> Remedy:
    """Smaller steps, or larger ones."""
    way = "lower" if factor < 1 else "raise"
    return Remedy(f"{way} the learning rate", f'for group in optimizer.param_groups: group["lr"] *= {factor:g}')


def rate_for(update: float, aim: float = 1e-2) -> Remedy:
    """A learning rate with which a step changes weights by about `aim` of their norm."""
    factor = 10.0 ** round(math.log10(aim / update)) if update > 0 else 10.0
    return rate(max(10.0, factor) if aim > update else min(0.1, factor))


def no_decay() -> Remedy:
    """Weights that are not pulled to zero."""
    return Remedy("switch weight decay off", 'for group in optimizer.param_groups: group["weight_decay"] = 0.0')


def zero_grad() -> Remedy:
    """Gradients of this step alone."""
    return Remedy("clear the gradients in every step, before backward()", "optimizer.zero_grad()")


def optimize(names: Sequence[str]) -> Remedy:
    """Parameters that the optimizer has not been given."""
    given = ", ".join(f"{typed(name.rpartition('.')[0])}.{name.rpartition('.')[2]}" for name in names)
    code = f'optimizer.add_param_group({{"params": [{given}]}})'
    return Remedy("give the optimizer these parameters as well, or freeze them with requires_grad_(False)", code)


def register() -> Remedy:
    """Layers that `parameters()` does not know of."""
    code = "self.layers = torch.nn.ModuleList(layers)  # in __init__, in place of a list; then make the optimizer anew"
    return Remedy("keep layers in a ModuleList, tensors as nn.Parameter: then model.parameters() has them", code)


def scale_input() -> Remedy:
    """Features of mean 0 and variance 1."""
    code = "x = (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-8)  # better: mean and deviation of the training set"
    return Remedy("scale the input, feature by feature, to mean 0 and standard deviation 1", code)


def pack() -> Remedy:
    """Sequences without their padding."""
    code = "packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)"
    return Remedy("if sequences are padded, pack them, so that the last state is that of the last real step", code)


def read(title: str, code: str) -> Remedy:
    """The answer, read somewhere else."""
    return Remedy(title, code)


def keep_graph(key: LayerKey) -> Remedy:
    """The state handed on as it is."""
    code = f"output, state = {typed(key.module)}(x, state)  # the state as it came, without .detach() or .data"
    return Remedy("hand the state on without detaching it within a training step", code)


def longer_window() -> Remedy:
    """More timesteps before the state is detached."""
    return Remedy("if the truncation is meant, detach less often: use a longer window", "window = 4 * window")


def cut(horizon: float) -> Remedy:
    """Whether a short reach is the matter at all."""
    last = max(1, math.ceil(horizon))
    code = f"x = x[:, -{last}:]  # time first: x[-{last}:]; leave the targets as they are, and train again"
    told = (
        f"a test that decides: keep the last {plural(last, 'timestep')} of each sequence. If the loss is the same, the "
        "network makes no use of what came before; if the task needs that, the reach is what holds it back"
    )
    return Remedy(told, code)


def what_if() -> Remedy:
    """What remedies would do, before they are trained."""
    return Remedy("see how far gradients would reach with each remedy", "print(scope.whatif(batch, loss))")


def cut_tail(kept: int) -> Remedy:
    """Whether the end of the sequences is in the way."""
    told = f"a test that decides: keep the first {plural(kept, 'timestep')} of each sequence, and see whether it learns"
    return Remedy(told, f"x = x[:, :{kept}]  # time first: x[:{kept}]")


def other_rates() -> Remedy:
    """One smaller and one larger."""
    code = 'for group in optimizer.param_groups: group["lr"] *= 0.1  # in another run: 10'
    return Remedy("try a learning rate ten times smaller, and one ten times larger", code)


def by_heart() -> Remedy:
    """The first test of any training."""
    code = (
        "for _ in range(300):  # always the same batch\n"
        "    optimizer.zero_grad()\n"
        "    loss = loss_of(model, batch)\n"
        "    loss.backward()\n"
        "    optimizer.step()"
    )
    told = "learn one batch by heart. If its loss does not go to zero, model or loop are wrong; else look at the data"
    return Remedy(told, code)


def look_at_shapes() -> Remedy:
    """Shapes and labels, which broadcast without a word."""
    return Remedy(
        "hold answers and targets side by side: the same shape, the labels that belong to the input, a loss that fits",
        "print(output.shape, target.shape, output.flatten()[:8], target.flatten()[:8])",
    )


def look_at_optimizer() -> Remedy:
    """How many parameters it holds."""
    return Remedy(
        "count what the optimizer holds: all parameters, and at which learning rate",
        'print([(len(g["params"]), g["lr"]) for g in optimizer.param_groups], len(list(model.parameters())))',
    )


def find_nonfinite() -> Remedy:
    """Where it begins."""
    return Remedy("let torch name the operation in which it begins", "torch.autograd.set_detect_anomaly(True)")


def leave_out() -> Remedy:
    """The samples of which the loss is not finite."""
    code = "loss = losses[losses.isfinite()].mean()  # losses: one for each sequence, with reduction='none'"
    return Remedy("leave out the sequences whose loss is not finite, and look at them", code)


def zero_infinity() -> Remedy:
    """CTC's own switch."""
    code = "criterion = torch.nn.CTCLoss(zero_infinity=True)"
    return Remedy("with CTC: targets that are longer than their input have an infinite loss; count them as zero", code)


def look_at_batch(step: int) -> Remedy:
    """The data of one step."""
    code = f"if step == {step}: print([name for name, value in batch.items() if not value.isfinite().all()])"
    return Remedy(f"look at the batch of step {step}", code)


def record_again(step: int) -> Remedy:
    """The step itself, in a second run."""
    code = f"gradscope.attach({MODEL}, logdir=..., every=lambda step: step >= {max(0, step - 2)})"
    return Remedy("repeat the run from the last checkpoint and record every step around it", code)


def record_more() -> Remedy:
    """A basis for a verdict."""
    return Remedy("record every step (or `gradscope run --every 1 SCRIPT`)", f"gradscope.attach({MODEL}, every=1)")
