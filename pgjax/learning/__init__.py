"""Everything a `step` is made of.

Read `acting` (policies in environments), `normalize` (running moments), `rollout` (collecting), `returns` (crediting),
`losses` and `optimizers` (learning), `evaluation` (what was learned).
"""
