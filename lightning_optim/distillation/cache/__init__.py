"""Answers of a teacher on disk: asked once, read ever after."""
