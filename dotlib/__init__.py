"""Data, runs and numbers for near-infrared diffuse optical tomography, each made from a frozen configuration.

The floors; imports point down only, and between modules of one floor only where `tests/test_project.py` lists them:

0. `config`, `metrics`, `stats`, `physics.green`, `models.attention`: closed forms and definitions.
1. the rest of `physics` (light, no anatomy), `data.phantoms` and `data.probe` (anatomy, no light), `losses`, the rest
   of `models`, `optim`.
2. the rest of `data`: the only place where anatomy and light meet, and the only one where noise is drawn.
3. `checkpoint`, `evaluation`, `trainer`, `tracking`: one run.
4. `study`, `trivial`, `comparison`: many runs, and what they are compared with.
5. `plots`, `report`, `bench`, `workbook`, `__main__`: what a person sees.
"""

__version__ = "0.1.0"
