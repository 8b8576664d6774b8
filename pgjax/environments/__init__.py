"""What is acted in.

Read `base` (the interface), `catalog` (a table of what gymnax has), `gymnax` (its environments behind the interface) and
`probes` (problems with known answers).
"""
