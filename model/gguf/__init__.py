"""GGUF files as a source: nobody else knows them. Only blocks.py and shards.py import torch."""
