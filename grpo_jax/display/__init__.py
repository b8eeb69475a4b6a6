"""What a person sees of a run while it goes on. Nothing here is needed to train, and nothing here can stop it."""

from grpo_jax.display.frame import APART, Plan, View, frame
from grpo_jax.display.show import Display, Guarded, LiveDisplay, PlainDisplay, SilentDisplay, choose

__all__ = [
    "APART",
    "Display",
    "Guarded",
    "LiveDisplay",
    "PlainDisplay",
    "Plan",
    "SilentDisplay",
    "View",
    "choose",
    "frame",
]
