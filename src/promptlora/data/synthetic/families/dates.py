"""Dates, weekdays and times of day."""

from __future__ import annotations

from datetime import date, timedelta
from functools import partial

from promptlora.data.synthetic.family import DIGITS, choice, family, ordinal
from promptlora.data.synthetic.pools_numbers import clock, clock12, written_date
from promptlora.data.synthetic.vocabulary.facts import MONTHS, WEEKDAYS

_d = partial(family, "dates")
_t = partial(family, "times")
_c = partial(choice, "date questions")
_BOTH = "date written-date"
_SEASONS = ("winter", "winter", "spring", "spring", "spring", "summer", "summer", "summer", "autumn", "autumn", "autumn", "winter")  # fmt: skip


def leap(year: int) -> bool:
    """Whether a year is a leap year in the Gregorian calendar."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def days_in_month(day: date) -> int:
    """Number of days in the month of a date."""
    return (date(day.year + day.month // 12, day.month % 12 + 1, 1) - date(day.year, day.month, 1)).days


def part_of_day(minutes: int) -> str:
    """The time of day: morning from 6:00, afternoon from 12:00, evening from 18:00, night from 0:00."""
    return ("night", "morning", "afternoon", "evening")[minutes // 360]


def lasting(minutes: int) -> str:
    """Format minutes as 1 h 30 min."""
    return f"{minutes // 60} h {minutes % 60} min"


DATES = (
    _d("date-to-words", "date", written_date,
        "write {x} as day, month name and year, as in 5 March 2021|reformat {x} to the form 5 March 2021",
        "{x} in the form 5 March 2021|{x} with the name of the month, day first"),
    _d("date-to-iso", "written-date", str,
        "write {x} in the form YYYY-MM-DD|convert {x} to an ISO date",
        "{x} in the form YYYY-MM-DD|the ISO form of {x}"),
    _d("date-to-us", _BOTH, lambda v: f"{v.month:02d}/{v.day:02d}/{v.year}",
        "write {x} in the form MM/DD/YYYY|reformat {x} as month/day/year with two digits for month and day",
        "{x} in the form MM/DD/YYYY"),
    _d("date-with-dots", _BOTH, lambda v: f"{v.day:02d}.{v.month:02d}.{v.year}",
        "write {x} in the form DD.MM.YYYY|reformat {x} as day.month.year with two digits for day and month",
        "{x} in the form DD.MM.YYYY"),
    _d("date-compact", _BOTH, lambda v: f"{v:%Y%m%d}",
        "write {x} as eight digits: year, month, day|reformat {x} to YYYYMMDD",
        "{x} in the form YYYYMMDD"),
    _d("date-us-words", _BOTH, lambda v: f"{MONTHS[v.month - 1]} {v.day}, {v.year}",
        "write {x} in the form March 5, 2021|reformat {x} with the month name first, then day, comma and year",
        "{x} in the form March 5, 2021"),
    _d("short-date", _BOTH, lambda v: f"{v.day} {MONTHS[v.month - 1][:3]}",
        "shorten {x} to day and three-letter month, as in 5 Mar|write {x} in the form 5 Mar, without the year",
        "the day and the three-letter month of {x}, as in 5 Mar"),
    _d("year-of-date", _BOTH, lambda v: v.year,
        "copy the year of {x}|In which year is {x}?",
        "the year of {x}"),
    _d("month-of-date", "date", lambda v: MONTHS[v.month - 1],
        "name the month of {x}|In which month is {x}?",
        "the English name of the month of {x}"),
    _d("month-number", "written-date", lambda v: v.month,
        "give the number of the month of {x}|Which month of the year, as a number, is the month of {x}?",
        "the number of the month of {x} (January = 1)"),
    _d("day-of-date", _BOTH, lambda v: ordinal(v.day),
        "give the day of the month of {x} as an ordinal such as 5th|write the day of {x} in the form 21st",
        "the day of the month of {x} as an ordinal such as 5th"),
    _d("month-and-year", "date", lambda v: f"{MONTHS[v.month - 1][:3]} {v.year}",
        "shorten {x} to three-letter month and year, as in Mar 2021|write {x} in the form Mar 2021, without the day",
        "the month (three letters) and year of {x}, as in Mar 2021"),
    _d("days-later", _BOTH, lambda v, k: v + timedelta(days=k),
        "add {k} days to {x} and answer in the form YYYY-MM-DD|give the date {k} days after {x} as YYYY-MM-DD",
        "the date {k} days after {x} in the form YYYY-MM-DD", k=(1, 2, 3, 7, 10)),
    _d("days-earlier", _BOTH, lambda v, k: v - timedelta(days=k),
        "subtract {k} days from {x} and answer in the form YYYY-MM-DD|give the date {k} days before {x} as YYYY-MM-DD",
        "the date {k} days before {x} in the form YYYY-MM-DD", k=(1, 2, 7)),
    _d("years-later", "date", lambda v, k: f"{v.year + k}-{v:%m-%d}" if v.day < 29 else None,
        "add {k} years to {x}|give the same day {k} years after {x}, in the same form",
        "the date {k} years after {x} in the same form", k=(1, 2, 5, 10, 100)),
    _d("month-start", _BOTH, lambda v: v.replace(day=1),
        "give the first day of the month of {x} as YYYY-MM-DD|replace the day of {x} by the first of its month, in the form YYYY-MM-DD",
        "the first day of the month of {x} in the form YYYY-MM-DD"),
    _d("next-month", _BOTH, lambda v, way: MONTHS[(v.month - 1 + (1 if way == "after" else -1)) % 12],
        "name the month {way} the month of {x}|Which month comes directly {way} that of {x}?",
        "the name of the month {way} that of {x}", way=("after", "before")),
    _d("quarter", _BOTH, lambda v, s: f"{s}{(v.month + 2) // 3}",
        'give the quarter of {x} as "{s}" and a number from 1 to 4, joined|write "{s}" and the number of the quarter that {x} lies in',
        'the quarter of {x} as "{s}" with a number, as in {s}2', s=("Q", "q", "quarter ", "T")),
    _d("days-in-month", _BOTH, days_in_month,
        "count the days of the month of {x}|How many days does the month of {x} have?",
        "the number of days in the month of {x}", DIGITS),
    _d("two-digit-year", _BOTH, lambda v: f"{v.month:02d}/{v.year % 100:02d}",
        "write {x} as month/year, two digits each|shorten {x} to the form MM/YY",
        "{x} in the form MM/YY"),
    _d("decade", "year date", lambda v: f"{(v if isinstance(v, int) else v.year) // 10 * 10}s",
        "name the decade of {x} in the form 1990s|give the decade in which {x} lies, as in 1970s",
        "the decade of {x}, as in 1990s"),
    _d("century", "year", lambda v: ordinal((v + 99) // 100),
        "name the century of {x} as an ordinal such as 19th|give the ordinal of the century in which {x} lies, as in 20th",
        "the century of {x} as an ordinal such as 19th"),
    _d("year-offset", "year", lambda v, k, way: v + k if way == "after" else v - k,
        "give the year {k} years {way} {x}|Which year is {k} years {way} {x}?",
        "the year {k} years {way} {x}", k=(1, 5, 10, 20, 50, 100), way=("after", "before")),
    _d("days-between", "dates", lambda v: abs((v[0] - v[1]).days),
        "count the days from one date of {x} to the other|How many days lie between the two dates, the later one counted?",
        "the number of days from the earlier date to the later", DIGITS),
    _d("earlier-date", "dates", min,
        "copy the earlier date of {x}|Which of the two dates comes first?",
        "the earlier of the two dates"),
    _d("later-date", "dates", max,
        "copy the later date of {x}|Which of the two dates comes last?",
        "the later of the two dates"),
    _d("date-range", "dates", lambda v: f"{min(v)} to {max(v)}",
        'put the two dates in order with "to" between them|write the earlier date, the word "to" and the later date',
        'the two dates in order with "to" between them'),
    _d("weekday-shift", "weekday", "day",
        "name the weekday that {x} stands for|work out {x}|Which day of the week does {x} mean?",
        "the weekday that {x} stands for"),
    _d("weekday-short", "weekday", lambda v: v["day"][:3],
        "work out {x} and give the three-letter short form of that weekday, as in Wed|name the weekday that {x} stands for by its first three letters",
        "the first three letters of the weekday that {x} stands for"),
    _d("weekday-named", "weekday", "from",
        "copy the weekday that is named in {x} and do not compute anything|Which weekday does the text mention by name?",
        "the weekday named in {x}, without any computation"),
    *_c("leap-year", "year", lambda v: "yes" if leap(v) else "no",
        {"yes": "{x} is a leap year", "no": "it is not"},
        "say whether {x} is a leap year|Is {x} a leap year?"),
    *_c("season", _BOTH, lambda v: _SEASONS[v.month - 1],
        {"winter": "{x} is in December, January or February", "spring": "{x} is in March, April or May", "summer": "{x} is in June, July or August", "autumn": "{x} is in September, October or November"},
        "name the season of {x} in the northern hemisphere, by whole months with winter from December to February|In which season is {x} in Europe, if each begins with a month (spring on 1 March)?"),
    *_c("half-year", _BOTH, lambda v: "first" if v.month < 7 else "second",
        {"first": "{x} is before July", "second": "{x} is in July or later"},
        "say whether {x} is in the first or the second half of its year|Is {x} in the first or the second half of the year?"),
    *_c("before-year", "date year", lambda v, n: "before" if (v if isinstance(v, int) else v.year) < n else "since",
        {"before": "{x} is before {n}", "since": "{x} is in {n} or later"},
        "tell whether {x} lies before {n} (before) or not (since)|Does {x} lie before {n} or since {n}?", n=(1995, 2000, 2010)),
    *_c("early-in-month", _BOTH, lambda v: "early" if v.day < 11 else "middle" if v.day < 21 else "late",
        {"early": "the day of {x} is 1 to 10", "middle": "the day of {x} is 11 to 20", "late": "the day of {x} is 21 or more"},
        "say whether {x} is early (days 1 to 10), in the middle (11 to 20) or late (from 21) in its month|Is {x} early (1 to 10), middle (11 to 20) or late (from 21) in its month?"),
    *_c("first-date-earlier", "dates", lambda v: "yes" if v[0] < v[1] else "no",
        {"yes": "the first date is earlier than the second", "no": "it is later"},
        "say whether the two dates are in order of time|Does the first date come before the second?"),
    *_c("weekend", "weekday", lambda v: "weekend" if v["day"] in WEEKDAYS[5:] else "workday",
        {"weekend": "{x} means a Saturday or Sunday", "workday": "{x} means a day from Monday to Friday"},
        "work out {x} and say whether it is a workday or on the weekend|Is {x} a workday or part of the weekend?"),
    _t("time-to-12", "time", clock12,
        "write {x} in 12-hour form with AM or PM, as in 2:05 PM|convert {x} to the 12-hour clock with AM or PM",
        "{x} on the 12-hour clock, as in 2:05 PM"),
    _t("time-to-24", "time12", clock,
        "write {x} in 24-hour form with two digits for the hour|convert {x} to the 24-hour clock, as in 09:05",
        "{x} on the 24-hour clock, as in 09:05"),
    _t("minutes-later", "time", lambda v, k: clock(v + k),
        "add {k} minutes to {x}|give the time {k} minutes after {x} in the same form",
        "the time {k} minutes after {x} in the same form", k=(5, 10, 15, 30, 45, 60)),
    _t("minutes-earlier", "time", lambda v, k: clock(v - k + 1440),
        "subtract {k} minutes from {x}|give the time {k} minutes before {x} in the same form",
        "the time {k} minutes before {x} in the same form", k=(5, 10, 15, 30, 60)),
    _t("hours-later", "time", lambda v, k: clock(v + 60 * k),
        "add {k} hours to {x}|give the time {k} hours after {x} in the same form, past midnight if need be",
        "the time {k} hours after {x} in the same form", k=(1, 2, 3, 6, 12)),
    _t("hour-of-time", "time", lambda v: v // 60,
        "copy the hour of {x} without a leading zero|Which hour does {x} show, without a leading zero?",
        "the hour of {x} without a leading zero"),
    _t("minute-of-time", "time time12", lambda v: v % 60,
        "copy the minutes of {x} without a leading zero|How many minutes past the full hour is {x}?",
        "the minutes of {x} without a leading zero"),
    _t("time-with-h", "time", lambda v, s: f"{v // 60}{s}{v % 60:02d}",
        'write {x} with "{s}" instead of the colon and without a leading zero in the hour|replace the colon of {x} by "{s}" and drop a zero at the start',
        '{x} with "{s}" for the colon and no leading zero in the hour', s=("h", ".", " h ", "-")),
    _t("minutes-to-hour", "time", lambda v: 60 - v % 60 if v % 60 else None,
        "count the minutes from {x} to the next full hour|How many minutes are left from {x} to the next full hour?",
        "the minutes from {x} to the next full hour", DIGITS),
    _t("since-midnight", "time", lambda v: v if v < 600 else None,
        "count the minutes from midnight to {x}|How many minutes after midnight is {x}?",
        "the minutes from midnight to {x}", DIGITS),
    _t("period-length", "times", lambda v: v[1] - v[0],
        "count the minutes of {x}|How many minutes does {x} last?",
        "the length of {x} in minutes", DIGITS),
    _t("period-length-long", "times", lambda v: lasting(v[1] - v[0]),
        "give the length of {x} in the form 1 h 30 min|write how long {x} lasts, as in 0 h 45 min",
        "the length of {x} in the form 1 h 30 min"),
    _t("period-start", "times", lambda v, which: clock(v[0] if which == "start" else v[1]),
        "copy the {which} of {x}|give the time at the {which} of {x}",
        "the {which} of {x}|the time at the {which} of {x}", which=("start", "end")),
    _t("period-words", "times", lambda v: f"from {clock(v[0])} to {clock(v[1])}",
        'write {x} with "from" and "to"|rewrite {x} in the form from 08:00 to 09:00',
        "{x} in the form from 08:00 to 09:00"),
    *choice("date questions", "part-of-day", "time time12", part_of_day,
        {"night": "{x} is before 6 in the morning", "morning": "{x} is from 6 in the morning to before noon", "afternoon": "{x} is from noon to before 6 PM", "evening": "{x} is 6 PM or later"},
        "name the part of the day of {x}: night before 06:00, then morning, from noon afternoon, from 18:00 evening|Which part of the day is {x}, if night ends at 06:00, morning at noon and afternoon at 18:00?"),
    *choice("date questions", "before-noon", "time time12 ", lambda v: "AM" if v < 720 else "PM",
        {"AM": "{x} is before noon", "PM": "{x} is noon or later"},
        "say whether {x} is AM or PM|Is {x} in the AM or in the PM half of the day?"),
    *choice("date questions", "long-period", "times", lambda v, k: "long" if v[1] - v[0] > k else "short",
        {"long": "{x} lasts more than {k} minutes", "short": "{x} lasts {k} minutes or less"},
        "call {x} long if it lasts more than {k} minutes and short otherwise|Is {x} long (more than {k} minutes) or short?", k=(60, 75, 90)),
)  # fmt: skip
