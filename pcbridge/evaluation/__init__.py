"""Evaluation of structures, energies and forces against references."""
