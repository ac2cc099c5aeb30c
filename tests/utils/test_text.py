from __future__ import annotations

import pytest

from optuna_stitch.utils.text import (
    escape_markdown,
    listed_text,
    markdown_table,
    millions_text,
    number_text,
    p_value_text,
    percent_interval_text,
    percent_text,
    points_text,
    shape_text,
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (shape_text((3, 224, 224)), "3×224×224"),
        (number_text(0.123456), "0.1235"),
        (number_text(999.96), "1000"),
        (number_text(12345.6), "12,346"),
        (number_text(2.34567, 3), "2.35"),
        (millions_text(1_234_567_890), "1,234.6 M"),
        (millions_text(1_234_567, 3), "1.235 M"),
        (percent_text(0.985), "98.50%"),
        (percent_text(0.985, 1, sign=""), "98.5"),
        (percent_interval_text((0.971, 0.992)), "97.1–99.2"),
        (percent_interval_text((0.971, 0.992), 2, between=" to "), "97.10 to 99.20"),
        (points_text(0.0125), "+1.25"),
        (points_text(-0.0125, 1), "-1.2"),
        (p_value_text(0.0123), "0.012"),
        (p_value_text(3.14e-12), "3.1e-12"),
        (p_value_text(3.14e-12, least=1e-4), "< 0.0001"),
        (p_value_text(1e-4, least=1e-4), "0.0001"),
        (listed_text(["a"]), "a"),
        (listed_text(["a", "b", "c"]), "a, b and c"),
        (escape_markdown("a|b_c*d\\"), "a\\|b\\_c\\*d\\\\"),
    ],
)
def test_numbers_and_words(said: str, expected: str) -> None:
    assert said == expected


def test_a_markdown_table_aligns_numbers_and_keeps_bars_in_cells() -> None:
    table = markdown_table(["what", "n", "m"], [["a|b", "1", "2"], ["c\nd", "3", "4"]], align="lr")
    assert table.splitlines() == [
        "| what | n | m |",
        "| :--- | ---: | ---: |",
        "| a\\|b | 1 | 2 |",
        "| c d | 3 | 4 |",
    ]
    escaped = markdown_table(["what"], [[escape_markdown("a|b")]])
    assert escaped.splitlines()[-1] == "| a\\|b |"


def test_a_wide_table_has_room_between_its_columns() -> None:
    table = markdown_table(["what", "n"], [["a", "1"]], align="lr", wide=True)
    assert table.splitlines()[0] == "| what | \u2003n |"
    assert table.splitlines()[2] == "| a | \u20031 |"
