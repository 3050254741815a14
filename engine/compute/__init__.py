"""compute/ runs one step: rows become tensors, the model runs, tokens are drawn."""
