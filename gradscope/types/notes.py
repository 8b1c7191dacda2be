"""Notes behind findings: `observe` writes these texts, and rules recognise them. Saved runs contain them."""

from __future__ import annotations

NO_GRADIENT = "it was called with gradients enabled, and no gradient came back to it"
"""In a recorded step, at the module: its results do not lead to the loss."""

DISABLED = "it was called with gradients disabled alone, while a loss went backward"
"""In a recorded step without any gradient of a recurrence, at the module: `torch.no_grad` is around it."""

FROZEN = "none of its parameters requires a gradient, nor does its input"
"""In a recorded step without any gradient of a recurrence, at the module."""

STALE = "gradients of an earlier step were still in .grad when the first backward pass of this step began"
"""In a recorded step, at the whole model; followed by `: norm {before:.3g}, {after:.3g} after the pass`."""

UNOPTIMIZED = "parameters lie below the loss, and no optimizer steps them: "
"""At the whole model, once a run; followed by names of parameters, or by shapes of parameters without a module."""

CLIPPED_LATE = (
    "gradients were clipped after the optimizer's step and before the next backward pass, which changes nothing: clip "
    "them between backward() and step()"
)
"""In a step at whose gradients gradscope looks, at the whole model."""

LOST = "gradients are not finite at the optimizer: "
"""In the first such step, at the layer; followed by names of parameters, and by whether the weights were finite."""

DETACHED = "the state was detached"
"""At the module, in a recorded step in which its state returns without its gradient; followed by where from."""

DECAY = "weight decay takes away at every step "
"""At the whole model, once a run; followed by `{share:.2%} of the recurrent weights ({optimizer}, lr=..., ...)`."""

OUTWEIGHS = "weight decay adds more to the gradient than the loss does: "
"""In a recorded step, at the whole model; followed by `norm {decay:.3g}, loss gradient {gradient:.3g} ({optimizer},
weight_decay=...)`."""

PENALTY = "a penalty of the weights in the loss is a large part of their gradient: "
"""In a recorded step, at the whole model; followed by `norm {penalty:.3g}, loss gradient {rest:.3g} (of their squares)`
or `sizes`."""
