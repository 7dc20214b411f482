"""Vision Transformers in plain PyTorch: images in, logits out."""
