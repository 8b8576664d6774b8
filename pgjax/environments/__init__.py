"""What is acted in.

Read `base` (the interface), `catalog` (what gymnax has, as a table), `gymnax` (that behind the interface), `suites`
(others, an adapter each), `probes` (problems with known answers), `registry` (`make`, and environments as parts).
"""
