"""`benchmarks.certificates`: a line a model, seed and way to certify, with a column for each radius."""

from benchmarks.certificates import page


def test_radii_are_columns():
    def row(by: str, lipschitz: float | None, radius: float, certified: float) -> dict:
        share = {"radius": radius, "certified": certified, "low": certified - 0.1, "high": certified + 0.1}
        return {"model": "head/sll", "seed": 3, "n": 50, "lipschitz": lipschitz, "by": by, "clean": 0.9, "seconds": 1.5} | share

    table = [
        row("Lipschitz", 2.5, 0.25, 0.7),
        row("Lipschitz", 2.5, 1.0, 0.2),
        row("smoothing", None, 0.25, 0.6),
        row("smoothing", None, 1.0, 0.5),
    ]
    heading, _, first, second = page(table).splitlines()
    assert heading == "| model | seed | L | by | read | certified at 0.25 | certified at 1 | n | seconds |"
    assert first == "| head/sll | 3 | 2.5 | Lipschitz | 90.0 | 70.0 [60.0, 80.0] | 20.0 [10.0, 30.0] | 50 | 1.5 |"
    assert second == "| head/sll | 3 |  | smoothing | 90.0 | 60.0 [50.0, 70.0] | 50.0 [40.0, 60.0] | 50 | 1.5 |"
