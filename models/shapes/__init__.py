"""The world that the demo model was trained on: coloured shapes that move as a prompt says."""

from videossm.models.shapes.vocabulary import Prompt
from videossm.models.shapes.world import World, render

__all__ = ["Prompt", "World", "render"]
