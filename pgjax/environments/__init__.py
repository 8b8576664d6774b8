"""What is acted in.

Read `base` (the interface), `catalog` (what gymnax has, as a table), `gymnax` (that behind the interface) and
`probes` (problems with known answers).
"""
