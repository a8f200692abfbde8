"""Params and settings, read once into frozen types, and the writing side of `nightjar init`."""
