"""How sure a share is."""

Z95 = 1.959963984540054


def wilson(k: float, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a share k/n (Wilson 1927); of a mean of n shares, k their sum, it is a wide one."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = k / n, Z95**2
    centre, half = p + z2 / (2 * n), Z95 * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return 0.0 if k == 0 else (centre - half) / (1 + z2 / n), 1.0 if k == n else (centre + half) / (1 + z2 / n)
