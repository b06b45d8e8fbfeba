"""What else should a user know about the loader's speed? The commands of ``measure.py``, by what they vary.

1. `waiting`: what a training loop waits for.
2. `sweeps`: what the loader's options do.
3. `storage`: what the form of the stores does.
4. `scaling`: more cells, and more processes.
"""
