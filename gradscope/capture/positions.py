"""A frozen copy of one call of a sequence module, and a way to run the call again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradscope.capture.cell_call import precision, take_weights
from gradscope.capture.double import Doubled, put_weights, quietly
from gradscope.capture.layout import choose_sequences
from gradscope.capture.results import tensors_in
from gradscope.capture.snapshot import tolerance
from gradscope.private import pytree
from gradscope.types import Positions, WholeCall


@dataclass(eq=False)
class SequenceModule(Doubled):
    """A module whose output has a time dimension.

    Attributes:
        name: qualified name.
        original: the user's module.
        dim: the time dimension of the output, 0 or 1; the other one is the batch.
    """

    name: str
    original: weakref.ref[nn.Module]
    dim: int
    _double: nn.Module | None = field(default=None, repr=False)

    @property
    def method(self) -> str:
        """The observed method."""
        return "forward"

    @property
    def seal(self) -> str:
        """Its key among the modules whose micro-batch is over: an observed layer may have the same name."""
        return f"{self.name} (positions)"

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModuleInputs:
        """Before the call: copy its arguments and the states of the random generators."""
        leaves, form = pytree.tree_flatten((args, kwargs))
        tensors = {id(x): x.detach().clone() for x in leaves if isinstance(x, Tensor)}
        copies = [tensors.get(id(x), x) for x in leaves]  # one tensor passed twice, as in attention(x, x, x), stays one
        weights = take_weights(self.module)
        for name, parameter in self.module.named_parameters():
            weights[name].requires_grad_(parameter.requires_grad)  # torch chooses its kernels by this flag
        modes = [module.training for module in self.module.modules()]
        states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]
        return ModuleInputs(self, copies, form, weights, states, modes)

    def by_time(self, x: Tensor) -> Tensor:
        """An output as [T, B, F]."""
        return x.transpose(0, self.dim).flatten(2)


@dataclass(slots=True)
class ModuleInputs:
    """The inputs of a call.

    Attributes:
        module: the called module.
        leaves: the arguments, flattened.
        form: structure of the arguments.
        weights: parameters and buffers.
        generators: states of the random generators of the CPU and of CUDA.
        training: training modes of the module and its submodules.
    """

    module: SequenceModule
    leaves: list[Any]
    form: pytree.TreeSpec
    weights: dict[str, Tensor]
    generators: list[Tensor]
    training: list[bool]

    def source(self, steps: int) -> int | None:
        """The index of the input sequence: the first leaf with as many timesteps."""
        dim = self.module.dim
        for index, leaf in enumerate(self.leaves):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 2 and leaf.shape[dim] == steps:
                return index
        return None

    def names(self) -> list[str]:
        """The name of each leaf."""
        numbered = pytree.tree_unflatten(list(range(len(self.leaves))), self.form)
        paths = [path for path, _ in pytree.tree_flatten_with_path(numbered)[0]]
        return [f"argument {pytree.keystr(path[1:])}" for path in paths]

    def run(self, index: int) -> tuple[Tensor, Tensor]:
        """Run the module again: its input sequence, and its output with a graph to it."""
        source = self.leaves[index].detach().requires_grad_()
        double = self.module.double()
        for module, training in zip(double.modules(), self.training, strict=False):
            module.training = training
        with ExitStack() as quiet, torch.enable_grad():
            tensors = {id(x): x.clone() for x in self.leaves if isinstance(x, Tensor)}
            tensors[id(self.leaves[index])] = source.clone()  # no leaf: the module may write into its input
            args, kwargs = pytree.tree_unflatten([tensors.get(id(x), x) for x in self.leaves], self.form)
            quietly(quiet, source.device)
            torch.set_rng_state(self.generators[0])
            if len(self.generators) > 1:
                torch.cuda.set_rng_state(self.generators[1])
            weights = {name: weight.clone() for name, weight in self.weights.items()}
            put_weights(double, self.module.module, weights)
            result = functional_call(double, weights, args, kwargs)
        return source, tensors_in(result)[0]


@dataclass(eq=False)
class SequenceCall:
    """One call, and the loss gradient of its output.

    Attributes:
        inputs: the inputs.
        index: number of the call within the step.
        output: the output, [T, B, F].
        gradient: the accumulated gradient, [T, B, F]; None without any.
    """

    inputs: ModuleInputs
    index: int
    output: Tensor
    gradient: Tensor | None = None

    def positions(self, limit: int | None, factor: Tensor | float) -> Positions:
        """The call as `Positions`, for measuring."""
        assert self.gradient is not None
        kind = torch.float64 if self.output.dtype == torch.float64 else torch.float32
        index = self.inputs.source(len(self.output))
        chosen = choose_sequences(self.output.shape[1], limit)
        columns = torch.arange(self.output.shape[1]) if chosen is None else torch.tensor(chosen)
        return Positions(
            output=self.output.to(kind),
            gradient=self.gradient.to(kind) / factor,
            columns=columns.to(self.output.device),
            run=None if index is None else self._runner(index),
            dim=self.inputs.module.dim,
            tolerance=tolerance(precision([self.output, *tensors_in(self.inputs.leaves)]), self.output.device),
        )

    def whole(self, factor: Tensor | float) -> WholeCall:
        """The call with all its inputs, for finding the origin of a value that is not finite."""
        positions, inputs = self.positions(None, factor), self.inputs
        index = inputs.source(len(self.output))
        names = inputs.names()
        parameters = {name for name, _ in inputs.module.module.named_parameters()}
        return WholeCall(
            positions,
            None if index is None else inputs.module.by_time(inputs.leaves[index]),
            {name: weight.detach() for name, weight in inputs.weights.items() if name in parameters},
            {names[n]: x for n, x in enumerate(inputs.leaves) if isinstance(x, Tensor) and n != index}
            | {name: buffer for name, buffer in inputs.weights.items() if name not in parameters},
        )

    def _runner(self, index: int) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            source, output = self.inputs.run(index)
            with torch.enable_grad():
                return source, self.inputs.module.by_time(output)

        return run
