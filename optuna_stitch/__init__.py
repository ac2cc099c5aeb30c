"""Stitch two trained networks into one supernetwork and search its subnetworks with Optuna."""

from __future__ import annotations

import lazy_loader

__version__ = "0.2.0"

# The public names stand in `__init__.pyi`. Each is imported at its first use: torch and timm take
# seconds, which neither the command line's help nor a wrong key in a study file should cost.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
