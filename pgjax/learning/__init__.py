"""Everything a `step` is made of.

Read `acting` (policies in environments), `normalize` (running moments), `rollout` (collecting), `returns` (crediting),
`replay` (transitions that are kept), `losses` and `optimizers` (learning), `natural_gradient` (for those that measure
steps by the KL divergence), `evaluation` (what was learned).
"""
