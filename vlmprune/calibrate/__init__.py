"""Choosing a method's options on a user's own data."""
