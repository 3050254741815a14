"""One step computed: a batch of rows becomes tensors, the model runs, tokens are drawn."""
