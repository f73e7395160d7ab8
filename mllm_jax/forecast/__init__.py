"""What a step will need on hardware that is not here: memory, traffic, time. Shared by doors."""
