"""The page about a finished recipe: curves, scores, answers. Made from its files alone."""
