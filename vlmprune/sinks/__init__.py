"""Attention sinks of a model: its sink dimensions, a report of one prompt's sinks, and a plot of it."""
