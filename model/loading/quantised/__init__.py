"""Reads quantised safetensors checkpoints: what config.json says of them, and a file for each format.

description = description_of(directory)          from JSON alone; None: the checkpoint is not quantised
quantisation = description.over(names)           beside the names of the tensors that the files hold
scheme = quantisation.of("model.layers.0.self_attn.q_proj")      None: stored plain
stored = scheme.read(get, module, (out, in))     the file's own integers and scales
kind = kind_of([stored]); weight.put(parts_of(stored, kind), 0)
"""
