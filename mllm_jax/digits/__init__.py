"""Handwritten numbers in four languages: the quickstart's data, made from scans that scikit-
learn carries.
"""
