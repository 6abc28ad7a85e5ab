"""Texts to token shards."""
