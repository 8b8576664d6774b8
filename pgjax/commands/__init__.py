"""The command line: `flags` (made from the dataclasses), `cli` (the commands)."""
