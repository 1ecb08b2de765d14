"""Caption quality: metrics that are exact where the truth is known, and the benchmark of the captioner."""
