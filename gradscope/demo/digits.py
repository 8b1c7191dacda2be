"""Handwritten digits, pixel by pixel: a small, real task that needs memory."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load scikit-learn's 1,797 images of 8 x 8 pixels; a fifth, evenly over the digits, is for testing.

    Returns:
        Images to learn from, (images, 64, 1), their digits, and images and digits for testing; pixels lie in 0 to 1.
    """
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=seed)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).unsqueeze(-1) for part in parts[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return train_x, train_y, test_x, test_y
