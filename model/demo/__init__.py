"""The default model: a pinned dense checkpoint, made into a Mixtral."""
