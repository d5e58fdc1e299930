"""Other people's training runs: what it takes to measure them, one module per trainer."""
