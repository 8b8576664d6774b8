"""What is acted in.

Read `base` (the interface), `catalog` (what there is, as a table), `gymnax` (that behind the interface), `suite` and
`suites` (others, an adapter each), `host` (those that are not JAX), `wrappers` (environments around environments),
`own` (those of a user's own), `probes` (problems with known answers), `registry` (`make`, and environments as parts).
"""
