"""When a batch's labels have all arrived."""

from datetime import date


def test_a_day_has_matured_when_its_last_label_has_arrived(make_site):
    site = make_site(label_delay_days=2)
    assert [site.has_matured(date(2026, 3, 1), date(2026, 3, day)) for day in (2, 3, 4, 5)] == [
        False,
        False,
        True,
        True,
    ]


def test_the_hour_that_a_clock_change_takes_is_waited_for(make_site):
    site = make_site(time_zone="Europe/Berlin", label_delay_days=10)
    assert not site.has_matured(date(2026, 3, 25), date(2026, 4, 5))  # ten days later are 239 hours here
    assert site.has_matured(date(2026, 3, 25), date(2026, 4, 6))


def test_passwords_in_urls_are_hidden():
    from tasks.errors import hide_password

    assert hide_password("postgresql+psycopg://me:secret@host/db failed") == "postgresql+psycopg://host/db failed"
