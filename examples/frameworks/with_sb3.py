"""Stable-Baselines3: RecurrentPPO of sb3-contrib on CartPole.

python examples/frameworks/with_sb3.py
"""

from __future__ import annotations

from gradscope_integrations.sb3 import GradscopeCallback
from sb3_contrib import RecurrentPPO

if __name__ == "__main__":
    options = {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "seed": 0, "device": "cpu"}
    agent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"lstm_hidden_size": 16}, **options)
    with GradscopeCallback(every=2) as watching:
        agent.learn(128, callback=watching)
    print(watching.run.frame("layers")[["step", "module", "horizon", "decay"]].to_string(index=False))
