"""Paths of tiles: one spelling each, and nothing else is taken for one."""

import random

from hypothesis import example, given
from hypothesis import strategies as st

from aegis_c.ledger.tiles import ENTRIES, Tile, parse_path
from reference import tiles

TILES = st.builds(Tile, st.integers(ENTRIES, 63), st.integers(0, 2**62), st.integers(1, 256))


@given(TILES)
@example(Tile(0, 999))
@example(Tile(0, 1000))
@example(Tile(ENTRIES, 1_000_000, 255))
def test_a_path_names_its_tile(tile: Tile) -> None:
    assert parse_path(tile.path) == tile
    assert tiles.index_path(tile.number) in tile.path


@given(st.text("tile/nrs0123456789x.p \n", max_size=40))
@example("tile/0/x000/001")
@example("tile/0/x001/x000/001")
@example("tile/00/001")
@example("tile/64/001")
@example("tile/0/001.p/0")
@example("tile/0/001.p/256")
@example("tile/0/001.p/01")
@example("tile/0/001\n")
@example("tile/0/\u0660\u0660\u0661")
@example("/tile/0/001")
@example("tile/0/../0/001")
def test_any_other_text_names_none(path: str) -> None:
    found = parse_path(path)
    assert found is None or found.path == path


def test_near_misses_of_paths() -> None:
    dice = random.Random(3)
    for _ in range(20_000):
        level, number = dice.randint(ENTRIES, 63), dice.randrange(10 ** dice.randint(1, 12))
        path = list(Tile(level, number, dice.randint(1, 256)).path)
        at = dice.randrange(len(path))
        path[at : at + dice.randint(0, 1)] = dice.choice(
            ["0", "x", "/", ".p", "9", "", "\u0661", "000/"]
        )
        found = parse_path("".join(path))
        assert found is None or found.path == "".join(path)
