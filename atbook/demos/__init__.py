"""Each mechanism of `atbook.mechanisms` on a small task that needs it, beside controls: one file each.

Every file has the same few names. ``CHANCE``: the score of a guess. ``ARMS``: what is compared, the mechanism and its
controls. ``run(arm, seed, steps)``: train it; returns the score in percent on images it has not seen, and the tensors
of a picture. ``python book/_tools/demos.py`` records all of them for five seeds.
"""
