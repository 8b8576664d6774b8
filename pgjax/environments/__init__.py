"""Environments: the interface (`base`), gymnax behind it (`gymnax`), and problems with known answers (`probes`)."""
