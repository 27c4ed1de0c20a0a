"""Data, runs and numbers for near-infrared diffuse optical tomography, each made from a frozen configuration.

The floors; imports point down only, and between modules of one floor only where `tests/test_project.py` lists them:

0. `config`, `metrics`, `stats*`, `convergence`, `power_law`, `physics.green`, `provenance`, `workers`: definitions.
1. `physics`, `data.phantoms`, `data.surface`, `data.probe`, `arms`, `improvements`, `recipes`, `losses`, `models`,
   `optim`: the parts. `physics` knows no anatomy and `phantoms` no light.
2. the rest of `data`: a configuration's phantoms, readings, split and volumes; light and anatomy meet in `recording`.
3. `archive`, `checkpoint`, `history`, `inference`, `evaluation`, `journal`, `machine`, `memory`, `monitor`,
   `perceptual`, `tracking`, `trainer`: one training; `records`: the committed results of many.
4. `run`, `run_store`: trainings and their folders; `cluster`, `slurm`, `shards`: work on a cluster; `study`,
   `standing`, `outcomes`, `results`, `trivial`, `comparison`: many runs and what they are compared with; `search`,
   `ledger`, `sweep`: runs that tune; `judgement`, `judged_*`, `localisation`: what they make of phantoms;
   `reconstruct`, `trained`: of a recording; `sections`: what one section of the thesis computes.
5. `plots`, `viewer`, `latex`, `shown`, `report`, `chapter`, `pages`, `workbook`, `thesis`, `bench*`, `commands*`,
    `__main__`: what a person sees.
"""

__version__ = "0.1.0"
