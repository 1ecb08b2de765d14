"""What a call did and what it cost: reports, FLOPs and bytes counted from shapes, estimates for given hardware."""
