"""Many settings and seeds in one call.

Read `space` (axes and settings), `search` (what changes while members train), `plan` (what a sweep will do),
`result` (what it found), `shell` (doing it), `optuna` (Optuna proposes, a population evaluates)."""
