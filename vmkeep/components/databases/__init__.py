"""Databases, one module for each engine."""
