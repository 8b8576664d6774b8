"""What a person sees of runs: `statistics` (what a few seeds can say), `listing` (directories at a glance), `plotting`
(curves), `rendering` (episodes), and for reports `again` (the command), `contents` (what files say) and `page`."""
