"""What ships with the project: the embedded model and the invented databases with their questions."""
