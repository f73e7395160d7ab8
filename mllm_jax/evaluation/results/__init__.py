"""Results folders: settings, answers as they come, tables, a figure and a page."""
