"""Other trainers: hooks for their loops, readers for their logs. Nobody imports us."""
