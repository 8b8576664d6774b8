"""The command line: `flags` (made from the dataclasses), `launch` (several processes), `cli` (the commands)."""
