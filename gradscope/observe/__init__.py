"""Joins the other rooms while a training runs: receives its events, decides what to record, and analyses each step.

opens:     `opening` from the arguments of `attach`; `watched`, `tree`, `parameters` the model; `quantities`, `about`
receives:  `observer` optimizer steps, `backward` passes, `calls` kernel and cell calls, `ledger` clipping and scaling
decides:   `plan`, which asks `schedule` and `alarm`
holds:     `step` a recorded step; `hooks`, `arriving`, `weights`, `sequences`, `observed`, `following` its calls
assigns:   `passes`, `owners` and `losses` find the passes, the parameters and the loss of each optimizer's step
checks:    `look` gradients changed by hand, `nonfinite` NaN, `byhand`, `checks` and `unseen` faults of the loop
writes:    `ending` the row of every step; `recorded` those of a recorded one, with `analysing`, `updates`, `origins`
guards:    `guard` keeps failures and time apart from the training; `clock` measures its steps
"""
