"""Stage 3: checkpoints to scores, text and pictures."""
