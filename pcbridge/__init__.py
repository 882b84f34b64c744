"""Everything around the model: training it, evaluating it, and using it without writing code."""
