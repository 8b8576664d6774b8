"""What is acted in.

Read `base` (the interface), `catalog` (what gymnax has, as a table), `gymnax` (that behind the interface), `probes`
(problems with known answers), `registry` (environments as parts).
"""
