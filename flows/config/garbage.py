"""How often Python searches for objects that refer to each other in a circle."""

import gc

NEW_OBJECTS = 10_000


def collect_less_often() -> None:
    """Search after 10,000 new objects. With 700, as Python does, imports take a fifth longer."""
    gc.set_threshold(NEW_OBJECTS)
