"""The networks as torch modules, named so that the original projects' checkpoints load unchanged.

One file a network or a part of one. Nothing about files, preprocessing or scores: that is `segship.families`, which alone
uses them besides `segship.training`. ``*_choices.py`` hold what command lines show and import no torch.
"""
