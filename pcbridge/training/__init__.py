"""Training: stages, updates, saved states, on any number of processes."""
