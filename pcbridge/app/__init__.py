"""Using a trained model without writing code: the `pcbridge` command."""
