"""All that can be chosen about a training: its network, its data, its loop."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Setup:
    """A training, all but its task and its seed.

    Attributes:
        family: `"lstm"`, `"gru"`, `"rnn_tanh"` or `"rnn_relu"`; of one's own also `"rnn_` and what `cells.Elman` knows.
        form: `"fused"`, `"packed"`, `"cells"` (torch's cells in a loop), `"own"` (cells of one's own in a loop),
            `"residual"` (one module a layer, added to what goes into it), `"dropped"` (a module that is called for
            every timestep by itself and never given the state of the one before), `"forgetful"` (torch's cells,
            in a loop in which nobody gives them their state).
        init: what is done to the recurrent weights before training, in order: (name in `starts.STARTS`, number).
        read: which states the answer is read from: `""` as the task means it, `"end"` the last position of the padded
            batch, `"start"` the first, `"mean"` and `"max"` all valid ones, `"state"` the module's last state, `"view"`
            the same of two directions, reshaped so that its sequences are mixed.
        swapped: the batch goes in as if its first dimension were time.
        viewed: the batch is made time-first by `view`, not by `transpose`, which mixes its sequences.
        head: `"linear"`; `"list"`: in a Python list; `"frozen"`; `"relu"`, `"sigmoid"`, `"argmax"`: what follows it;
            `"softmax"`: over one unit alone; `"probabilities"`: over all, before a loss that does it again;
            `"log_softmax"`, which that loss leaves as it is; `"over batch"`: the wrong dimension; `"round"`;
            `"detached"`: on states without their past; `"no_grad"`: those too, as they are made; `"rewrapped"`:
            answers made into a tensor that requires a gradient; `"threshold"`: into zeros and ones; `"clamp"`: kept
            between 0 and 1.
        handover: whether a decoder begins with the encoder's state; `"none"`, `"detached"`.
        length: timesteps of a sequence; 0 for the task's own number.
        pad: timesteps of padding behind the longest sequence.
        front: the same in front, and every sequence ends where the batch does; `"packed"` is not told of it.
        embed_scale: what embeddings are multiplied by before training.
        state: deviation of the numbers drawn for the state in which a sequence begins; 0 for zeros.
        spare: there is a module that is never called.
        leak: share of a new state that own Elman cells take; the rest is the old one. `mask`: share of the state that
            is dropped between two timesteps, drawn anew for each of them.
        norms: where there is a layer norm: `"in"` before the recurrence, `"out"` behind it.
        tied: the read-out has the embedding's weights.
        stacked: further layers as modules of their own, in a Python list.
        burn: first timesteps that are read without gradients.
        cut: only so many of the last timesteps are read; 0 for all.
        inputs: what numbers that go in are multiplied by, and `offset` is added.
        column: the first feature alone is multiplied by it as well. `ramp`: added to it at every timestep once more.
        sentinel: share of the numbers that go in that are missing, for which somebody wrote -9999.
        noise: deviation of what is added to all that goes in.
        shuffled: every sequence has its timesteps in an order of its own.
        unknown: share of the symbols that the vocabulary does not know, which go in as 0.
        targets: what numbers to be said are multiplied by, and `target_offset` is added.
        labels: `"true"`, `"random"`, `"broadcast"`, `"rare"`, or `"sorted"`: sequences are sorted by their length and
            labels are not. `smoothing`: of them in the cross-entropy.
        carry: a batch begins with the state in which an unrelated one ended.
        single: every timestep is a sequence by itself, from a zero state.
        optimizer: `"adam"`, `"adamw"`, `"sgd"` (momentum 0.9), `"plain"` (SGD without it), or torch's `"rmsprop"`,
            `"adagrad"`, `"nadam"`, `"radam"`, `"adadelta"`, `"adamax"`, `"asgd"`. `momentum`: of `"sgd"`. `eps`: of
            Adam's kin; 0 for torch's.
        slow: parameters whose names hold this have a group of their own, with a learning rate 1e-5 times as large.
        l1: what the sum of all parameters' sizes is multiplied by before it is added to the loss. `l2`: of squares.
        warmup: steps over which the learning rate rises. `decay`: what it is multiplied by at every step. `cycle`:
            steps after which it begins anew, having fallen along a cosine; 0 for never. `milestone`: steps after each
            of which it is multiplied by `gamma`. `plateau`: torch's `ReduceLROnPlateau` with this patience, at every
            step.
        clip: `max_norm` of all gradients; 0 for none. `clip_value`: the same for `clip_grad_value_`. `clip_late`: after
            the step, where it does nothing. `clip_early`: before there are gradients. `clamp`: bound of every number,
            without torch's functions. `clip_part`: whose gradients alone are clipped. `clip_each`: every parameter's
            by themselves. `norm`: which norm.
        scaler: what a loss is multiplied by and its gradients are divided by before the step. `unscaled`: before they
            are clipped; otherwise after it.
        accumulate: micro-batches of a step.
        twice: the loss has two terms, and each goes backward by itself.
        between: what happens every tenth step: `"validation"`, `"sampling"`.
        zero_grad: whether gradients are cleared before a step; where not, `cleared` names a part whose are.
            `zeroed`: to zeros, not to None.
        zero_every: only before every so manieth step. `zero_late`: between backward and step.
        detach: the state is detached after so many timesteps; 0 for never. `half`: what alone of an LSTM's state is:
            `"h"` or `"c"`.
        forgotten: parameters whose names hold this are not given to the optimizer.
        replaced: the part that is made anew after the optimizer. `frozen`: the part that requires no gradient.
        birth: what makes the loss or its gradient infinite: a name in `births.BIRTHS`, at step `birth_at`.
        scale: what the loss is multiplied by.
    """

    family: str = "lstm"
    form: str = "fused"
    hidden: int = 128
    layers: int = 1
    bidirectional: bool = False
    proj: int = 0
    dropout: float = 0.0
    embed: int = 64
    init: tuple[tuple[str, float], ...] = ()
    read: str = ""
    swapped: bool = False
    viewed: bool = False
    head: str = "linear"
    handover: str = "state"
    length: int = 0
    pad: int = 0
    front: int = 0
    embed_scale: float = 1.0
    state: float = 0.0
    spare: bool = False
    leak: float = 1.0
    mask: float = 0.0
    norms: str = ""
    tied: bool = False
    stacked: int = 0
    burn: int = 0
    cut: int = 0
    inputs: float = 1.0
    offset: float = 0.0
    column: float = 1.0
    ramp: float = 0.0
    sentinel: float = 0.0
    noise: float = 0.0
    shuffled: bool = False
    unknown: float = 0.0
    labels: str = "true"
    smoothing: float = 0.0
    targets: float = 1.0
    target_offset: float = 0.0
    carry: bool = False
    single: bool = False
    optimizer: str = "adam"
    lr: float = 0.003
    weight_decay: float = 0.0
    momentum: float = 0.9
    eps: float = 0.0
    slow: str = ""
    l1: float = 0.0
    l2: float = 0.0
    warmup: int = 0
    decay: float = 1.0
    cycle: int = 0
    milestone: int = 0
    gamma: float = 1.0
    plateau: int = 0
    clip: float = 1.0
    clip_value: float = 0.0
    clip_late: bool = False
    clip_early: bool = False
    clamp: float = 0.0
    clip_part: str = ""
    clip_each: bool = False
    norm: float = 2.0
    scaler: float = 1.0
    unscaled: bool = False
    steps: int = 200
    batch: int = 32
    accumulate: int = 1
    twice: bool = False
    between: str = ""
    autocast: bool = False
    zero_grad: bool = True
    cleared: str = ""
    zero_every: int = 1
    zero_late: bool = False
    zeroed: bool = False
    detach: int = 0
    half: str = ""
    forgotten: str = ""
    replaced: str = ""
    frozen: str = ""
    birth: str = ""
    birth_at: int = 0
    scale: float = 1.0

    def but(self, **changes: Any) -> Setup:
        """The same with some things changed."""
        return replace(self, **changes)

    def key(self, task: str, seed: int) -> str:
        """A short name for the training that this makes: the same settings are trained once."""
        usual = Setup()
        chosen = {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)
        }
        text = f"{task}/{seed}/{sorted(chosen.items())}"
        return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def told(self) -> dict[str, Any]:
        """As a dict, for the record."""
        return asdict(self)
