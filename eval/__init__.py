"""Stage 3: checkpoints to scores, text and pictures.

Its folders import one way: common < generation < scoring < monitor < commands; all may import prepare/ and train/.
"""
