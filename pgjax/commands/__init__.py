"""The command line: `presets` (tuned settings), `flags` (made from the dataclasses), `cli` (the commands)."""
