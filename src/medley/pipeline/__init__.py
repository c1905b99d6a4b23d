"""The pipeline: the only package that knows more than one stage. `STAGES` states their order once.

`plan_steps` turns a recipe into the steps of a run without doing anything; `run_recipe` carries them out.
"""

from medley.pipeline.plan import STAGES, plan_steps
from medley.pipeline.start import run_recipe

__all__ = ["STAGES", "plan_steps", "run_recipe"]
