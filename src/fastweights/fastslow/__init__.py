"""Fast-Slow Training: prompts as fast weights, parameters as slow weights, one reward for both."""
