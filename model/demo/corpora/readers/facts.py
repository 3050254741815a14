"""Makes questions about countries from the World Factbook."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from octavo.model.demo.corpora.archives import texts
from octavo.model.demo.corpora.documents import Document

Profile = dict[str, Any]

WITH_ARTICLE = {"United States", "United Kingdom", "Netherlands", "Philippines", "Maldives", "Central African Republic"}
WITH_ARTICLE |= {"Czech Republic", "Dominican Republic", "Marshall Islands", "Solomon Islands", "United Arab Emirates"}
ABBREVIATIONS = {"NATO", "OPEC", "ASEAN", "UNESCO", "CFA", "SADC", "ECOWAS", "UNMIK", "ISIL", "AIDS"}
MOST_SENTENCES = 4  # of a country's history
LONGEST = 700  # characters of what is quoted


def read(archives: Sequence[Path]) -> Iterator[Document]:
    """Yields several documents for each country that has a short name and a capital."""
    for name, text in texts(archives[0], "package/*/*.json"):
        if not name.startswith("package/meta/"):
            profile = json.loads(text)
            country = _country(profile)
            if country and _find(profile, "Government", "Capital", "name"):
                yield from _documents(country, profile)


def _documents(country: str, profile: Profile) -> Iterator[Document]:
    title = country[0].upper() + country[1:]
    for make in (_capital, _place, _borders, _peak, _languages, _history, _climate, _goods, _independence, _flag):
        if (document := make(country, title, profile)) is not None:
            yield document


def _capital(country: str, title: str, profile: Profile) -> Document | None:
    capital = _first(_find(profile, "Government", "Capital", "name"))
    return Document(f"What is the capital of {country}?", f"The capital of {country} is {capital}.")


def _place(country: str, title: str, profile: Profile) -> Document | None:
    place = _find(profile, "Geography", "Location")
    area = _first(_find(profile, "Geography", "Area", "total"))
    if not place or not re.fullmatch(r"[\d.,]+( million)? sq km", area):
        return None
    answer = f"{title} lies here: {place}. Its area is {area.replace('sq km', 'square kilometres')}."
    return Document(f"Tell me where {country} lies and how large it is.", answer)


def _borders(country: str, title: str, profile: Profile) -> Document | None:
    listed = _find(profile, "Geography", "Land boundaries", "border countries")
    neighbours = re.findall(r"(?:^|, )([A-Z][^\d,;()]+?)\s+[\d,.]+ km", listed)
    if not neighbours or ";" in listed or "(" in listed:
        return None
    return Document(f"Which countries border {country}?", f"{title} borders {_and(neighbours)}.")


def _peak(country: str, title: str, profile: Profile) -> Document | None:
    found = re.fullmatch(
        r"([A-Z][^\d;]+?) ([\d,]+) m", _find(profile, "Geography", "Elevation extremes", "highest point")
    )
    if found is None:
        return None
    answer = f"The highest point of {country} is {found[1]}, {found[2]} metres above the sea."
    return Document(f"What is the highest point of {country}?", answer)


def _languages(country: str, title: str, profile: Profile) -> Document | None:
    spoken = _without_dates(_find(profile, "People and Society", "Languages"))
    answer = f"These languages are spoken in {country}: {spoken}."
    return Document(f"Which languages are spoken in {country}?", answer) if spoken else None


def _history(country: str, title: str, profile: Profile) -> Document | None:
    text = _find(profile, "Introduction", "Background")
    sentences = re.split(r"(?<=[a-z\d)][.])\s+(?=[A-Z])", text)[:MOST_SENTENCES]
    answer = re.sub(r"\b[A-Z]{4,}\b", _as_name, " ".join(sentences)).rstrip(".") + "."
    return Document(f"Tell me about the history of {country}.", answer) if len(text) >= 200 else None


def _climate(country: str, title: str, profile: Profile) -> Document | None:
    climate, terrain = _find(profile, "Geography", "Climate"), _find(profile, "Geography", "Terrain")
    if not climate or not terrain:
        return None
    answer = f"The climate of {country}: {climate}. Its land: {terrain}."
    return Document(f"What are the climate and the land of {country} like?", answer)


def _goods(country: str, title: str, profile: Profile) -> Document | None:
    grown = _find(profile, "Economy", "Agriculture - products")
    sold = _without_dates(re.sub(r" [\d.]+%", "", _find(profile, "Economy", "Exports - commodities"))).replace(";", ",")
    if not grown or not sold:
        return None
    answer = f"Farms and fishers of {country} produce {grown}. Its exports are {sold}."
    return Document(f"What does {country} produce and export?", answer)


def _independence(country: str, title: str, profile: Profile) -> Document | None:
    found = re.fullmatch(r"(\d+ \w+ \d{4}) \(from ([^();]+)\)", _find(profile, "Government", "Independence"))
    if found is None:
        return None
    answer = f"{title} became independent from {found[2]} on {found[1]}."
    return Document(f"When did {country} become independent?", answer)


def _flag(country: str, title: str, profile: Profile) -> Document | None:
    flag = _find(profile, "Government", "Flag description")
    answer = f"The flag of {country}: {flag}."
    return Document(f"What does the flag of {country} look like?", answer) if flag else None


def _country(profile: Profile) -> str:
    """Returns the name of a country as it stands in a sentence; an empty string if it has no short one."""
    name = _first(_find(profile, "Government", "Country name", "conventional short form"))
    family, _, given = name.partition(", ")
    name = f"{given} {family}" if given else name
    name = "Dominican Republic" if name == "The Dominican" else name
    if not name or name.lower() == "none":
        return ""
    if name in WITH_ARTICLE or name.startswith("The ") or name.endswith(" Islands"):
        return f"the {name.removeprefix('The ')}"
    return name


def _find(profile: Profile, *path: str) -> str:
    """Returns the text at a path of the profile, without spaces that wrap it; an empty string if there is none."""
    found: Any = profile
    for key in (*path, "text"):
        found = found.get(key) if isinstance(found, dict) else None
    text = " ".join(str(found or "").split()).rstrip(".")
    return text if len(text) <= LONGEST or path[-1] == "Background" else ""


def _first(text: str) -> str:
    return re.split(r"[;(]", text)[0].strip()


def _without_dates(text: str) -> str:
    return re.sub(r"\s*\(\d{4}( est\.?)?\)", "", text)


def _as_name(found: re.Match[str]) -> str:
    """Returns a surname as others write it. The Factbook writes it in capitals."""
    return found[0] if found[0] in ABBREVIATIONS else found[0].capitalize()


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
