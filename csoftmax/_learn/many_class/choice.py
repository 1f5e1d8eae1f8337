"""The heads by name."""

from __future__ import annotations

from .adaptive import AdaptiveHead
from .heads import FullHead, LinearHead
from .sampled import SampledHead

Head = LinearHead | AdaptiveHead

HEADS: dict[str, type[LinearHead] | type[AdaptiveHead]] = {
    "sampled": SampledHead,
    "full": FullHead,
    "adaptive": AdaptiveHead,
}
