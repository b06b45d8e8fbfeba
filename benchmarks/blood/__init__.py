"""What does ``demo.py`` train on, and what does it train?

1. `cells`: the real cells, and the files that they come in.
2. `course`: epochs of training, scored on held-out cells.
3. `models`: one in torch, one in Flax.
4. `picture`: how it went.
"""
