"""Labelled examples addressed by position: pools, known corruptions, and the data sets molere can read."""
