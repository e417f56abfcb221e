"""The comparison of two builds sees what differs, and the second is made on another day."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from tools.second_build import differences, other_zone


def test_every_difference_is_named(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for site, files in (
        (one, {"a.html": "a", "b/c.html": "c", "d.js": "d"}),
        (other, {"a.html": "a", "b/c.html": "C", "e.js": "d"}),
    ):
        for name, text in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
    assert list(differences(one, other)) == [
        "b/c.html: differs",
        f"d.js: only in {one}",
        f"e.js: only in {other}",
    ]
    assert list(differences(one, one)) == []


def test_there_is_another_day_at_every_hour_and_place():
    for place in range(-12, 15):
        for hour in range(24):
            now = datetime(2026, 12, 31, hour, 30, tzinfo=timezone(timedelta(hours=place)))
            there = now.astimezone(ZoneInfo(other_zone(now)))
            assert there.date() != now.date()
            assert there.astimezone(UTC) == now.astimezone(UTC)
