"""Training: pairs in, experts out. Contrastive loss, LoRA adapters, sentence-transformers' trainer."""
