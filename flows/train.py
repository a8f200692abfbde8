"""The old module of `train_there`: old deployments point here until `nightjar deploy` updates them."""

from flows.training import train_there

__all__ = ["train_there"]
