"""What every room is written in, and what it knows of the machine.

Read `errors` (what is refused), `cores` (a device for each core of a CPU), `own` (code of the user's), `text` (how
objects show themselves), `hyperparameters` (traced and static fields), `metrics` (what an iteration reports),
`algorithm` (the interface between an algorithm and everything that runs it), `parts` (hyperparameters that are
objects), `place` (which of several processes this is), `processes` (what they do together), `devices` (dividing work).
"""
