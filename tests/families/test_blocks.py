"""Spectra of the blocks of recurrent weights against float64, for blocks of many kinds and scales."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradscope.families.blocks import measure_blocks
from gradscope.families.lstm import LSTM
from gradscope.types import Weights


def block(kind: str, width: int) -> Tensor:
    """A block of this kind."""
    normal, turned = torch.randn(2, width, width, dtype=torch.float64)
    normal, orthogonal = normal / width**0.5, torch.linalg.qr(turned)[0]
    return {
        "normal": normal,
        "symmetric": (normal + normal.mT) / 2,
        "orthogonal": orthogonal,
        "identity": torch.eye(width, dtype=torch.float64),
        "near the identity": torch.eye(width, dtype=torch.float64) + 1e-3 * normal,
        "nearly degenerate": orthogonal * torch.linspace(1, 0.98, width, dtype=torch.float64) @ orthogonal.mT,
        "defective": 0.9 * torch.eye(width, dtype=torch.float64) + torch.eye(width + 1, dtype=torch.float64)[1:, :-1],
        "nilpotent": torch.eye(width + 1, dtype=torch.float64)[1:, :-1],
        "rank one": normal[:, :1] @ normal[:1],
        "outlier": normal + 1e3 * orthogonal[:, :1] @ orthogonal[:, :1].mT,
        "zero": torch.zeros(width, width, dtype=torch.float64),
    }[kind]


KINDS = ("normal", "symmetric", "orthogonal", "identity", "near the identity", "nearly degenerate", "defective")
KINDS += ("nilpotent", "rank one", "outlier", "zero")


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-18, 1e12])
@pytest.mark.parametrize("width", [32, 128, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_norm_and_orthogonality(kind: str, width: int, scale: float) -> None:
    torch.manual_seed(0)
    exact = scale * block(kind, width)
    weights = Weights(torch.empty(4 * width, 1), exact.float().repeat(4, 1), None, None, None)
    found = measure_blocks(LSTM(), weights, eigenvalues=False)["forget"]
    norm = float(torch.linalg.matrix_norm(exact, 2))
    distance = float(torch.linalg.matrix_norm(exact.mT @ exact - torch.eye(width, dtype=torch.float64)) / width**0.5)
    assert float(found.spectral_norm) == pytest.approx(norm, rel=1e-6 if width <= 64 else 2e-3)
    assert float(found.orthogonality) == pytest.approx(distance, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"defective", "nilpotent"}))  # a rounding changes their eigenvalues
def test_radius(kind: str) -> None:
    torch.manual_seed(0)
    exact = block(kind, 128)
    weights = Weights(torch.empty(4 * 128, 1), exact.float().repeat(4, 1), None, None, None)
    found = measure_blocks(LSTM(), weights, eigenvalues=False)["input"]
    assert float(found.spectral_radius) == pytest.approx(float(torch.linalg.eigvals(exact).abs().amax()), rel=1e-2)
