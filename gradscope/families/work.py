"""The parts of the analysis that each quantity needs, in one table.

The certificate of the rebuilt states needs no further part. Quantities of gradients also need the certificate of the
weight gradients, and so the reverse scan.
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

* `scan`: carry the total loss gradient back through all timesteps, and compare it with the gradient of the weights;
* `anchors`: carry the gradients of single timesteps back, as further rows of the same products;
* `sizes`: Frobenius norms of the step Jacobians, by closed forms;
* `saturation`: count the units near the ends of the range of their gates;
* `blocks`: spectral radius, norm and orthogonality of the recurrent weights; `eigenvalues`: all eigenvalues;
* `products`: singular values of single Jacobians, and of their products.
"""
FULL = ("jacobian_max", "gain", "lyapunov", "spectra")
CORE = tuple(name for name in NEEDS if name not in FULL)
ECONOMY = ("grad_h", "grad_h_direct", "reach", "gates")


@dataclass(frozen=True)
class Work:
    """The requested quantities.

    Attributes:
        quantities: their names.
    """

    quantities: frozenset[str]

    @cached_property
    def parts(self) -> frozenset[str]:
        """The parts of the work, see `NEEDS`."""
        return frozenset(part for name in self.quantities for part in NEEDS[name].split())


CORE_WORK = Work(frozenset(CORE))
