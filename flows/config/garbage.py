"""How often Python searches for objects that refer to each other in a circle."""

import gc

NEW_OBJECTS = 10_000


def collect_less_often() -> None:
    """Search after 10,000 new objects. Python's 700 make imports, half of a night's work, a fifth slower."""
    gc.set_threshold(NEW_OBJECTS)
