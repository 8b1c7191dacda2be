"""Remedies in the training loop: lines to type, and tests that decide between causes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscope.diagnose.words import MODEL, number, plural, typed
from gradscope.types import LayerKey, Remedy

NO_DECAY = Remedy("switch weight decay off", 'for group in optimizer.param_groups: group["weight_decay"] = 0.0')
NO_PENALTY = Remedy(
    "take the penalty of the weights out of the loss, or make it far smaller",
    "loss = criterion(output, target)  # without the penalty of the weights",
)
ZERO_GRAD = Remedy("clear the gradients in every step, before backward()", "optimizer.zero_grad()")
REGISTER = Remedy(
    "store layers in a ModuleList, tensors as nn.Parameter: then model.parameters() has them",
    "self.layers = torch.nn.ModuleList(layers)  # in __init__, in place of a list; then make the optimizer anew",
)
SCALE_INPUT = Remedy(
    "scale the input, feature by feature, to mean 0 and standard deviation 1",
    "x = (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-8)  # better: mean and deviation of the training set",
)
PACK = Remedy(
    "pack padded sequences, so that the last state is the state of the last real timestep",
    "packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)",
)
LONGER_WINDOW = Remedy("if you truncate on purpose, detach less often: use a longer window", "window = 4 * window")
WHAT_IF = Remedy("see how far gradients would reach with each remedy", "print(scope.whatif(batch, loss))")
OTHER_RATES = Remedy(
    "try a learning rate ten times smaller, and one ten times larger",
    'for group in optimizer.param_groups: group["lr"] *= 0.1  # in another run: 10',
)
BY_HEART = Remedy(
    "learn one batch by heart. If its loss does not go to zero, model or loop are wrong; else check the data",
    "for _ in range(300):  # always the same batch\n"
    "    optimizer.zero_grad()\n"
    "    loss = loss_of(model, batch)\n"
    "    loss.backward()\n"
    "    optimizer.step()",
)
LOOK_AT_SHAPES = Remedy(
    "compare answers and targets: the same shape, the labels of the same inputs, a suitable loss",
    "print(output.shape, target.shape, output.flatten()[:8], target.flatten()[:8])",
)
LOOK_AT_OPTIMIZER = Remedy(
    "check that the optimizer has all parameters, and its learning rates",
    'print([(len(g["params"]), g["lr"]) for g in optimizer.param_groups], len(list(model.parameters())))',
)
FIND_NONFINITE = Remedy("let torch name the first non-finite operation", "torch.autograd.set_detect_anomaly(True)")
SKIP = Remedy(
    "skip a batch whose loss is not finite, and look at it: one such step makes all weights NaN",
    "if loss.isfinite():\n    loss.backward()\n    optimizer.step()\nelse:\n    print(batch)",
)
LEAVE_OUT = Remedy(
    "leave out the sequences with a non-finite loss, and look at them",
    "loss = losses[losses.isfinite()].mean()  # losses: one for each sequence, with reduction='none'",
)
ZERO_INFINITY = Remedy(
    "with CTC, targets longer than their input have an infinite loss; count them as zero",
    "criterion = torch.nn.CTCLoss(zero_infinity=True)",
)
RECORD_MORE = Remedy("record every step (or `gradscope run --every 1 SCRIPT`)", f"gradscope.attach({MODEL}, every=1)")


def clip(norm: float) -> Remedy:
    """Clip by norm at a threshold from the run's own records."""
    code = f"torch.nn.utils.clip_grad_norm_({MODEL}.parameters(), max_norm={number(norm)})"
    return Remedy("clip by norm, between backward() and the optimizer's step", code)


def rate(factor: float) -> Remedy:
    """Scale the learning rate."""
    verb = "lower" if factor < 1 else "raise"
    return Remedy(f"{verb} the learning rate", f'for group in optimizer.param_groups: group["lr"] *= {factor:g}')


def rate_for(update: float, aim: float = 1e-2) -> Remedy:
    """Scale the learning rate so that a step changes weights by about `aim` of their norm."""
    factor = 10.0 ** round(math.log10(aim / update)) if update > 0 else 10.0
    return rate(max(10.0, factor) if aim > update else min(0.1, factor))


def optimize(names: Sequence[str]) -> Remedy:
    """Pass missing parameters to the optimizer."""
    missing = ", ".join(f"{typed(name.rpartition('.')[0])}.{name.rpartition('.')[2]}" for name in names)
    code = f'optimizer.add_param_group({{"params": [{missing}]}})'
    return Remedy("pass these parameters to the optimizer as well, or freeze them with requires_grad_(False)", code)


def keep_graph(key: LayerKey) -> Remedy:
    """Pass the state on with its graph."""
    code = f"output, state = {typed(key.module)}(x, state)  # the state as it came, without .detach() or .data"
    return Remedy("pass the state on within a training step without detaching it", code)


def cut(horizon: float) -> Remedy:
    """Test whether the short reach matters."""
    last = max(1, math.ceil(horizon))
    code = f"x = x[:, -{last}:]  # time first: x[-{last}:]; leave the targets as they are, and train again"
    title = (
        f"a decisive test: keep the last {plural(last, 'timestep')} of each sequence. If the loss stays the same, the "
        "network does not use earlier timesteps; if the task needs them, the short reach is the obstacle"
    )
    return Remedy(title, code)


def cut_tail(count: int) -> Remedy:
    """Test whether the end of the sequences is the obstacle."""
    first = plural(count, "timestep")
    title = f"a decisive test: keep the first {first} of each sequence, and see whether the network learns"
    return Remedy(title, f"x = x[:, :{count}]  # time first: x[:{count}]")


def look_at_batch(step: int) -> Remedy:
    """Look at the data of one step."""
    code = f"if step == {step}: print([name for name, value in batch.items() if not value.isfinite().all()])"
    return Remedy(f"look at the batch of step {step}", code)


def record_again(step: int) -> Remedy:
    """Record the step in a second run."""
    code = f"gradscope.attach({MODEL}, logdir=..., every=lambda step: step >= {max(0, step - 2)})"
    return Remedy("repeat the run from the last checkpoint and record every step around it", code)
