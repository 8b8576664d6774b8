"""Everything a `step` is made of.

Read `normalize` (running moments), `rollout` (collecting), `returns` (crediting), `losses` and `optimizers`
(learning), `evaluation` (what was learned)."""
