"""The second pair: two towers of their own, trained on captions and answers, never on labels of patches."""
