"""Training on verifiable tasks: settings, tasks, the model, rollouts, the loop."""
