"""Demonstrations; nothing of the package imports them."""
