"""Everything that happens around `step`.

Read `directory` (a run on disk, seen from outside), `loop` (training as a pure function), `population` (many members
as one algorithm), `compile` (programs), `presets` (tuned settings), `config` and `checkpoint` (what makes a run again),
`sinks` (where metrics go), `session` (what runs and sweeps do alike), `stopping` (ending early), `numpy_policy` and
`export` (a policy where there is no jax), `result` (a finished run), `shell` (a run that can be stopped and resumed).
"""
