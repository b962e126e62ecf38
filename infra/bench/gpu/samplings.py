"""How tokens are chosen while the engine is measured."""

from __future__ import annotations

from thinkstream_model.generation import GenerationDefaults

SAMPLINGS = {
    "plain": GenerationDefaults(temperature=1.0, top_p=1.0, top_k=0),
    "default": GenerationDefaults(),
}
"""By name: the whole vocabulary at temperature 1, which keeps the choice of experts spread; and what the
released model's card recommends, which is what most jobs run with."""
