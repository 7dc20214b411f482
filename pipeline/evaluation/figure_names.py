"""How a figure of an evaluation was measured: one name for MLflow, lists and comparisons."""


def rule(protocol: str, views: int, average: str) -> str:
    """A crop protocol and, of several crops, what is averaged over them: center, ten-logits."""
    return protocol if views == 1 else f"{protocol}-{average}"
