"""The chat request that each API for conversations becomes, and the parts that its answer is read into."""
