"""Minimisers compared on atoms: the same starts, the same function, every force call counted."""
