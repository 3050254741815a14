"""Makes an engine from its flags: it finds out what the machine has, loads the model, and sizes steps and cache."""
