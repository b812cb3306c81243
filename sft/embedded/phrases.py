"""English for the questions: plurals, numbers, dates, and the openings that ask for columns."""

import datetime
import random

IRREGULAR = {
    "person": "people",
    "child": "children",
    "man": "men",
    "woman": "women",
    "half": "halves",
    "shelf": "shelves",
    "calf": "calves",
    "loaf": "loaves",
    "staff": "staff",
    "species": "species",
    "series": "series",
    "sheep": "sheep",
    "aircraft": "aircraft",
    "medium": "media",
    "fish": "fish",
    "criterion": "criteria",
    "photo": "photos",
    "piece of equipment": "pieces of equipment",
}
MONTHS = ("January February March April May June July August September October November December").split()

# {columns} is a list of plural nouns ("names and prices"), {column} of singular ones, {rows} a plural noun phrase.
SHOW = (
    "What are the {columns} of {rows}?",
    "What are the {columns} of the {rows}?",
    "List the {columns} of {rows}.",
    "List the {column} of all {rows}.",
    "Show the {columns} of the {rows}.",
    "Show me the {column} for all {rows}.",
    "Give the {columns} of {rows}.",
    "Give me the {columns} of all {rows}.",
    "Find the {columns} of {rows}.",
    "Find the {column} for the {rows}.",
    "For {rows}, show the {column}.",
    "For all {rows}, give the {column}.",
    "I need the {columns} of the {rows}.",
    "Can you list the {columns} of {rows}?",
    "Could you show me the {columns} of all {rows}?",
    "Tell me the {columns} of the {rows}.",
    "Return the {column} of all {rows}.",
    "Please give me the {columns} of {rows}.",
    "Look up the {columns} of {rows}.",
    "I would like to see the {columns} of all {rows}.",
)
SHOW_ONE = (  # {row} is a singular noun phrase with its article
    "What is the {column} of {row}?",
    "Show the {column} of {row}.",
    "Give me the {column} of {row}.",
    "Find the {column} of {row}.",
    "Tell me the {column} of {row}.",
    "I need the {column} of {row}.",
    "Can you tell me the {column} of {row}?",
    "Look up the {column} of {row}.",
    "What's the {column} of {row}?",
)
COUNT = (
    "Count the {rows}.",
    "What is the number of {rows}?",
    "Give me the number of {rows}.",
    "Find the number of {rows}.",
    "What is the total number of {rows}?",
    "Show the number of {rows}.",
    "I need the number of {rows}.",
    "Can you count the {rows}?",
)
VALUE = (  # {value} is a singular noun phrase without article ("average price of cakes")
    "What is the {value}?",
    "Find the {value}.",
    "Give me the {value}.",
    "Show the {value}.",
    "Compute the {value}.",
    "Tell me the {value}.",
    "I'd like to know the {value}.",
    "Can you work out the {value}?",
    "Return the {value}.",
)


def plural(noun: str) -> str:
    """Plural of a noun or noun phrase: "date of birth" -> "dates of birth", "city" -> "cities"."""
    for preposition in (" of ", " in ", " per ", " at ", " for "):
        head, found, rest = noun.partition(preposition)
        if found:
            return plural(head) + found + rest
    before, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        ending = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh", "z")):
        ending = last + "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        ending = last[:-1] + "ies"
    else:
        ending = last + "s"
    return f"{before} {ending}".strip()


def listed(words: list[str], last: str = "and") -> str:
    """Words in a row: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def spoken_number(value: float, unit: str, rng: random.Random, short: bool = True) -> str:
    """A number as people write it: 1200 -> "1,200", where `short`, seldom 5000 -> "5k"."""
    if isinstance(value, float) and value != int(value):
        text = f"{value:g}"
    else:
        value = int(value)
        text = f"{value:,}" if value >= 10000 or (value >= 1000 and rng.random() < 0.5) else str(value)
        if short and value >= 2000 and value % 1000 == 0 and rng.random() < 0.15:
            text = f"{value // 1000}k"
    if unit == "dollars" and rng.random() < 0.4:
        return f"${text}"
    return f"{text} {unit}".strip()


def spoken_date(date: str, rng: random.Random) -> str:
    """An ISO date as people write it: "March 5, 2021", "5 March 2021" or as it is stored."""
    day = datetime.date.fromisoformat(date)
    month = MONTHS[day.month - 1]
    return rng.choice((f"{month} {day.day}, {day.year}", f"{day.day} {month} {day.year}", date))


def show(columns: list[str], rows: str, rng: random.Random) -> str:
    """Asks for columns (singular nouns) of many rows."""
    return rng.choice(SHOW).format(columns=listed([plural(c) for c in columns]), column=listed(columns), rows=rows)


def show_one(columns: list[str], row: str, rng: random.Random) -> str:
    """Asks for columns (singular nouns) of one row."""
    opening = rng.choice(SHOW_ONE)
    if len(columns) > 1:
        opening = opening.replace("What is the", "What are the").replace("What's the", "What are the")
    return opening.format(column=listed(columns), row=row)


def count(rows: str, rng: random.Random) -> str:
    """Asks for the number of rows."""
    if len(rows.split()) <= 6 and rng.random() < 0.5:
        return rng.choice(
            (
                f"How many {rows} are there?",
                f"How many {rows} do we have?",
                f"Tell me how many {rows} there are.",
                f"I want to know how many {rows} there are.",
            )
        )
    return rng.choice(COUNT).format(rows=rows)


def value(phrase: str, rng: random.Random) -> str:
    """Asks for one computed value."""
    return rng.choice(VALUE).format(value=phrase)


def article(text: str) -> str:
    """ "with a age" -> "with an age"."""
    words = text.split(" ")
    for i, word in enumerate(words[:-1]):
        if word == "a" and words[i + 1][0] in "aeiouAEIOU" and not words[i + 1].startswith(("uni", "use", "usa", "eu")):
            words[i] = "an"
    return " ".join(words)
