"""The page about a finished recipe: curves, scores, answers. Reads files, imports nothing of
ours but config.
"""
