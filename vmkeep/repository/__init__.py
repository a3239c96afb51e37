"""Deduplicated, compressed, encrypted chunks in a store."""
