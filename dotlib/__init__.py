"""Data, runs and numbers for near-infrared diffuse optical tomography, each made from a frozen configuration.

The floors; imports point down only, and between modules of one floor only where `tests/test_project.py` lists them:

0. `config`, `metrics`, `stats`: definitions.
1. `data.phantoms`, `losses`, `models`, `optim`: the parts.
2. the rest of `data`: a configuration's phantoms, their split, their volumes.
3. `checkpoint`, `evaluation`, `trainer`: one run.
4. `study`, `trivial`, `comparison`: many runs, and what they are compared with.
5. `plots`, `report`, `bench`, `workbook`, `__main__`: what a person sees.
"""

__version__ = "0.1.0"
