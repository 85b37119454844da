"""The comparisons of the paper on Tiny ImageNet."""
