"""Pages, made from files or arrays alone: about a finished recipe, about the rows of a step."""
