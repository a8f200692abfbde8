"""The stores: lake, warehouse and registry, and the translation of their failures into Nightjar's errors."""
