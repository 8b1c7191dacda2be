"""What has to be computed for what is asked: the dependence of every quantity, in one table.

The rebuilt states are compared with the kernel's whatever is asked. Quantities of gradients are compared with the
gradient of the weights as well, and so need the scan that carries gradients back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

NEEDS: Mapping[str, str] = {
    "grad_h": "scan",
    "grad_h_direct": "scan",
    "grad_c": "scan",
    "weight_grad": "scan",
    "reach": "scan anchors",
    "jacobian": "sizes",
    "jacobian_h": "sizes",
    "jacobian_c": "sizes",
    "state": "",
    "cell": "",
    "gates": "saturation",
    "units": "saturation",
    "weights": "blocks",
    "jacobian_max": "products",
    "gain": "products",
    "lyapunov": "products",
    "spectra": "blocks eigenvalues",
}
"""Quantity -> the parts of the work that it needs.

* `scan`: the total loss gradient is carried back through all timesteps, and held to the gradient of the weights;
* `anchors`: so are the gradients of a few timesteps alone, as further rows of the same products;
* `sizes`: Frobenius norms of the step Jacobians, by closed forms;
* `saturation`: units near the ends of the range of their gates are counted;
* `blocks`: spectral radius, norm and orthogonality of the recurrent weights; `eigenvalues`: all of them;
* `products`: singular values of single Jacobians, and Jacobians multiplied.
"""
FULL = ("jacobian_max", "gain", "lyapunov", "spectra")
CORE = tuple(name for name in NEEDS if name not in FULL)
ECONOMY = ("grad_h", "grad_h_direct", "reach", "gates")


@dataclass(frozen=True)
class Work:
    """What to compute.

    Attributes:
        asked: names of quantities.
    """

    asked: frozenset[str]

    @cached_property
    def parts(self) -> frozenset[str]:
        """The parts of the work, see `NEEDS`."""
        return frozenset(part for name in self.asked for part in NEEDS[name].split())


CORE_WORK = Work(frozenset(CORE))
