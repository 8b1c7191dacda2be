"""Assertions about a model's gradients, their messages, and the plugin that costs nothing."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.testing import assert_no_findings, assert_reach


class Net(nn.Module):
    """Its state is multiplied by a factor at every step: reach is the factor to the power of the lag."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 4, nonlinearity="relu", bias=False)
        self.norm = nn.BatchNorm1d(4)
        nn.init.ones_(self.rnn.weight_ih_l0)
        self.rnn.weight_hh_l0.data.copy_(factor * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.rnn(x)[0][-1])


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) * torch.arange(1.0, 5.0)).square().sum() + torch.rand(()) * 0


X = torch.rand(60, 3, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("factor", "lag"), [(0.5, 10), (0.7, 20), (0.9, 66)])
def test_reach(factor: float, lag: int) -> None:
    """A power of the factor first falls below a thousandth at a lag that is known."""
    assert factor**lag < 1e-3 <= factor ** (lag - 1)
    model = Net(factor)
    if lag < len(X):
        assert_reach(model, X, loss, at_least=lag - 1)
        with pytest.raises(AssertionError, match=f"{lag} steps back, less than a thousandth") as failed:
            assert_reach(model, X, loss, at_least=lag)
        assert f"{lag - 1:>6} steps back: {factor ** (lag - 1):.2g}\n" in str(failed.value)
        assert "does not reach" in str(failed.value) and "rnn, layer 0" in str(failed.value)
        assert re.search(r"to try:\n    \S", str(failed.value))
    else:
        assert_reach(model, X, loss, at_least=59)
        with pytest.raises(gradscope.GradscopeError, match=r"for only 59 steps.*at_least=59"):
            assert_reach(model, X, loss, at_least=66)


def test_model_and_random_numbers_stay_as_they_are() -> None:
    model = Net(0.9)
    loss(model, X).backward()
    before, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    numbers = torch.get_rng_state()
    assert_reach(model, X, loss, at_least=5)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    assert all(map(torch.equal, gradients, (p.grad for p in model.parameters())))
    assert torch.equal(numbers, torch.get_rng_state())


def test_only_the_layers_that_are_asked_for() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.bad = Net(0.9), Net(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.good(x) + self.bad(x)

    assert_reach(Two(), X, loss, at_least=30, include="good.*")
    with pytest.raises(AssertionError, match=r"bad\.rnn") as failed:
        assert_reach(Two(), X, loss, at_least=30)
    assert "good.rnn, layer" not in str(failed.value)


def test_nothing_to_see() -> None:
    with pytest.raises(gradscope.GradscopeError, match="no recurrent layer has a gradient"):
        assert_reach(Net(0.9), X, lambda model, x: model(x).sum() * 0 + model.norm.weight.sum(), at_least=5)


def train(model: nn.Module, steps: int = 3, rate: float = 1e-3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, X).backward()
        optimizer.step()


def test_findings() -> None:
    bad = Net(0.3)
    with gradscope.attach(bad, every=1) as scope:
        train(bad)
    codes = {finding.code for finding in scope.run.findings()}
    assert "vanishing_gradient" in codes
    with pytest.raises(AssertionError, match="vanishing_gradient in rnn, layer 0") as failed:
        assert_no_findings(scope.run, severity="info")
    assert re.search(r"to try:\n    \S", str(failed.value))
    assert_no_findings(scope.run, severity="info", allow=codes)
    assert_no_findings(scope.run)  # of three steps nobody knows whether it matters


def test_findings_of_a_healthy_run_and_of_an_empty_one() -> None:
    good = Net(1.0)
    with gradscope.attach(good, every=1) as scope:
        with pytest.raises(gradscope.GradscopeError, match="the run has no recorded step"):
            assert_no_findings(scope.run)
        train(good)
    assert_no_findings(scope.run, severity="critical")
    with pytest.raises(gradscope.GradscopeError, match="severity='bad'"):
        assert_no_findings(scope.run, severity="bad")


def session(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A session of pytest with our plugin and no other, which might import what it likes."""
    test = folder / "test_it.py"
    test.write_text(textwrap.dedent(code), encoding="utf-8")
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gradscope_integrations.pytest", "--rootdir", str(folder)]
    command += [str(test)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def test_the_fixture(tmp_path: Path) -> None:
    """It records, and its scopes are closed when a test is over."""
    run = session(tmp_path, """
        import torch, gradscope
        model, seen = torch.nn.GRU(2, 3), []

        def test_one(gradscope_attach):
            seen.append(gradscope_attach(model))
            model(torch.ones(5, 2, 2))[0].sum().backward()
            assert len(seen[0].run.frame("layers")) == 1
            raise ArithmeticError

        def test_two():
            model(torch.ones(5, 2, 2))[0].sum().backward()
            assert len(seen[0].run.frame("layers")) == 1
            gradscope.testing.assert_no_findings(seen[0].run, severity="critical")
    """)  # fmt: skip
    assert "1 failed, 1 passed" in run.stdout and "ArithmeticError" in run.stdout, run.stdout + run.stderr


def test_the_plugin_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    """A session that has it, and a test that does not use it, import neither torch nor gradscope."""
    run = session(tmp_path, """
        import sys

        def test_nothing():
            assert "gradscope_integrations.pytest" in sys.modules
            assert not {"torch", "gradscope", "numpy", "pandas"} & {*sys.modules}
    """)  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_plugin_is_registered() -> None:
    tomllib = pytest.importorskip("tomllib")
    text = (Path(gradscope.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["entry-points"]["pytest11"] == {"gradscope": "gradscope_integrations.pytest"}
