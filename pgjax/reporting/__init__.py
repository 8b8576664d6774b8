"""What a person sees of runs: `statistics` (what a few seeds can say), `plotting` (curves), `rendering` (episodes)."""
