"""The old place of `train_there`: deployments made before it moved name it until `nightjar deploy` renews them."""

from flows.training import train_there

__all__ = ["train_there"]
