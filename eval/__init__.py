"""Checkpoints to scores and text: the third room. Library modules import prepare/ and train/."""
