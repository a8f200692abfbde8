"""The base of every params section: frozen, strict, and closed to unknown keys.

A section's type lives beside the code that reads it; flows/params.py assembles them into what params.yaml holds.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One typed part of params.yaml or of a contract."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
