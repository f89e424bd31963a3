"""vidweights: pretrained weights for video networks."""
