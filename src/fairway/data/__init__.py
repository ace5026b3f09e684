"""Corpora, tokenizers, byte tables, shards, manifests and loaders."""
