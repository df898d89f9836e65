"""Samples as token ids: the model's chat template, its tokenizer, and which tokens are learned."""
