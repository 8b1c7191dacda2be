"""Stable-Baselines3: RecurrentPPO under the callback is RecurrentPPO in a scope attached by hand, and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from frameworks.plain import assert_same_records, found, same_bits

import gradscope

pytest.importorskip("stable_baselines3", minversion="2.3", reason="make frameworks installs Stable-Baselines3")
contrib = pytest.importorskip("sb3_contrib", minversion="2.3", reason="make frameworks installs sb3-contrib")
from gradscope_integrations.sb3 import GradscopeCallback  # noqa: E402


def agent() -> Any:
    """Made, it has set all seeds: to be trained before the next is made."""
    sizes = {"lstm_hidden_size": 8, "net_arch": [8]}
    options = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu", "policy_kwargs": sizes}
    return contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **options)


def test_recurrent_ppo() -> None:
    """There is no plain loop of it; a scope around all of `learn` hears the same, and then the environment as well."""
    watching, watched = GradscopeCallback(every=1, strict=True), agent()
    watched.learn(64, callback=watching)
    by_hand = agent()
    with gradscope.attach(by_hand.policy, every=1, strict=True) as scope:
        by_hand.learn(64)
    bare = agent().learn(64)
    assert_same_records(watching.run, scope.run)
    assert same_bits(watched.policy, bare.policy) and not same_bits(bare.policy, agent().policy)
    run = watching.run
    assert {key.module for key in run.layers} == {"lstm_actor", "lstm_critic"}
    assert len(run.frame("clips")) == watching.next_step == 4
    assert (run.frame("layers")["residual"] < 1e-5).all() and run.frame("notes").empty
    found("Stable-Baselines3 (RecurrentPPO)", "sb3-contrib", "sb3", "as in a scope attached by hand",
          identical=same_bits(watched.policy, bare.policy))  # fmt: skip


def test_learning_on(tmp_path: Path) -> None:
    model, watching = agent(), GradscopeCallback(tmp_path, every=1)
    for _ in range(2):
        model.learn(32, callback=watching, reset_num_timesteps=False)
    assert list(gradscope.load(tmp_path).frame("steps")["step"]) == [0, 1, 2, 3]


def test_closed_by_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent()

    def fail(*_: object) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError), GradscopeCallback(tmp_path, every=1) as watching:
        monkeypatch.setattr(type(model.policy), "evaluate_actions", fail)
        model.learn(32, callback=watching)
    with gradscope.attach(model.policy, tmp_path):  # nobody else writes there
        pass
