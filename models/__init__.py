"""Torch only: encoders, networks, fitting, scoring, calibration, and the detector that is saved and loaded."""
