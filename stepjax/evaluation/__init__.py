"""What a model is worth: answers, grading, diagnosis, tables."""
