"""The wording of the synthetic corpus.

A template is a sentence or a part of one, in lower case where no name stands, with a letter in
braces for each entity. ``{s}`` is the subject and ``{o}`` the object of the relation under which
the template is listed; no entity stands in a template twice. The lists come in pairs: the first
for training, development and the plain test split, the second *held out* for the split
``test_templates``. A held-out template arranges words of the training templates in a new way, so
that it can be understood by whoever has understood these; it never is one of them.
"""

from typing import NamedTuple

__all__ = [
    "DISTRACTORS",
    "DOUBT",
    "EPO",
    "FRAMES_BOTH",
    "FRAMES_CHAIN",
    "FRAMES_TWO",
    "JOINS",
    "NESTED",
    "RELATIONS",
    "SOO",
    "Relation",
    "Wordings",
]

Wordings = tuple[tuple[str, ...], tuple[str, ...]]
"""Templates for training, and templates held out."""


class Relation(NamedTuple):
    """What can be said about one relation.

    ``phrases`` begin with the verb and are said of the subject; ``clauses`` are sentences that
    put subject and object in their own order; ``denials`` are phrases that say the contrary.
    """

    subject: tuple[str, ...]
    object: str
    phrases: Wordings
    clauses: Wordings
    denials: Wordings


RELATIONS: dict[str, Relation] = {
    "based_in": Relation(
        ("company", "school"),
        "city",
        (
            (
                "is based in {o}",
                "has its main office in {o}",
                "has its seat in {o}",
            ),
            (
                "was based in {o}",
                "has its main seat in {o}",
            ),
        ),
        (
            (
                "{o} is the seat of {s}",
                "the main office of {s} is in {o}",
                "it is in {o} that {s} has its seat",
            ),
            (
                "the seat of {s} is {o}",
                "{o} is where {s} is based",
            ),
        ),
        (
            ("is not based in {o}", "has no office in {o}"),
            ("has no seat in {o}",),
        ),
    ),
    "born_in": Relation(
        ("person",),
        "city",
        (
            (
                "was born in {o}",
                "comes from {o}",
                "is a native of {o}",
            ),
            (
                "was a native of {o}",
                "has {o} as a birthplace",
            ),
        ),
        (
            (
                "{o} is the birthplace of {s}",
                "it was in {o} that {s} was born",
                "the birthplace of {s} was {o}",
            ),
            (
                "the birthplace of {s} is {o}",
                "{o} is where {s} was born",
            ),
        ),
        (
            ("was not born in {o}", "does not come from {o}"),
            ("is not a native of {o}",),
        ),
    ),
    "founded": Relation(
        ("person",),
        "company",
        (
            (
                "founded {o}",
                "started {o}",
                "is the founder of {o}",
            ),
            (
                "was the founder of {o}",
                "founded and started {o}",
            ),
        ),
        (
            (
                "{o} was founded by {s}",
                "the founder of {o} is {s}",
                "{o} was started by {s}",
            ),
            (
                "{o} has {s} as its founder",
                "it was {s} that founded {o}",
            ),
        ),
        (
            ("did not found {o}", "never started {o}"),
            ("is not the founder of {o}",),
        ),
    ),
    "leads": Relation(
        ("person",),
        "company",
        (
            (
                "leads {o}",
                "runs {o}",
                "was the head of {o}",
            ),
            (
                "is the head of {o}",
                "leads and runs {o}",
            ),
        ),
        (
            (
                "{o} is led by {s}",
                "{o} has {s} as its head",
                "it is {s} that leads {o}",
            ),
            (
                "the head of {o} is {s}",
                "it is {s} that runs {o}",
            ),
        ),
        (
            ("does not lead {o}", "never ran {o}"),
            ("is not the head of {o}",),
        ),
    ),
    "lives_in": Relation(
        ("person",),
        "city",
        (
            (
                "lives in {o}",
                "has a house in {o}",
                "settled in {o}",
            ),
            (
                "has a home in {o}",
                "settled and lives in {o}",
            ),
        ),
        (
            (
                "{o} is the home of {s}",
                "the house of {s} stands in {o}",
                "{o} is where {s} lives",
            ),
            (
                "it is in {o} that {s} lives",
                "the home of {s} is in {o}",
            ),
        ),
        (
            ("does not live in {o}", "has no house in {o}"),
            ("never settled in {o}",),
        ),
    ),
    "married_to": Relation(
        ("person",),
        "person",
        (
            (
                "is married to {o}",
                "married {o}",
                "is the husband of {o}",
                "was the wife of {o}",
            ),
            (
                "was married to {o}",
                "is the wife of {o}",
            ),
        ),
        (
            (
                "{s} and {o} are married",
                "{s} and {o} are husband and wife",
                "the husband of {s} is {o}",
            ),
            (
                "the wife of {s} is {o}",
                "{s} and {o} are wife and husband",
            ),
        ),
        (
            ("is not married to {o}", "never married {o}"),
            ("is not the husband of {o}",),
        ),
    ),
    "owns": Relation(
        ("company",),
        "company",
        (
            (
                "owns {o}",
                "bought {o}",
                "was the owner of {o}",
            ),
            (
                "is the owner of {o}",
                "bought and owns {o}",
            ),
        ),
        (
            (
                "{o} belongs to {s}",
                "{o} was bought by {s}",
                "{o} has {s} as its owner",
            ),
            (
                "the owner of {o} is {s}",
                "it was {s} that bought {o}",
            ),
        ),
        (
            ("does not own {o}", "never bought {o}"),
            ("is not the owner of {o}",),
        ),
    ),
    "parent_of": Relation(
        ("person",),
        "person",
        (
            (
                "is the father of {o}",
                "was the mother of {o}",
                "has a child named {o}",
            ),
            (
                "was the father of {o}",
                "is the mother of {o}",
            ),
        ),
        (
            (
                "{o} is a child of {s}",
                "{o} is the son of {s}",
                "{o} was the daughter of {s}",
                "the mother of {o} is {s}",
            ),
            (
                "{o} is the daughter of {s}",
                "the father of {o} is {s}",
            ),
        ),
        (
            ("is not the father of {o}", "has no child named {o}"),
            ("is not the mother of {o}",),
        ),
    ),
    "set_in": Relation(
        ("work",),
        "city",
        (
            (
                "is set in {o}",
                "takes place in {o}",
                "tells of life in {o}",
            ),
            (
                "was set in {o}",
                "tells of a life in {o}",
            ),
        ),
        (
            (
                "{o} is the scene of {s}",
                "the story of {s} is set in {o}",
                "it is in {o} that {s} takes place",
            ),
            (
                "the scene of {s} is {o}",
                "{o} is where {s} takes place",
            ),
        ),
        (
            ("is not set in {o}", "does not take place in {o}"),
            ("never tells of life in {o}",),
        ),
    ),
    "studied_at": Relation(
        ("person",),
        "school",
        (
            (
                "studied at {o}",
                "is a graduate of {o}",
                "holds a degree from {o}",
            ),
            (
                "was a graduate of {o}",
                "has a degree from {o}",
            ),
        ),
        (
            (
                "{o} counts {s} among its graduates",
                "{o} gave a degree to {s}",
                "it was at {o} that {s} studied",
            ),
            (
                "among the graduates of {o} is {s}",
                "{o} is where {s} studied",
            ),
        ),
        (
            ("never studied at {o}", "has no degree from {o}"),
            ("is not a graduate of {o}",),
        ),
    ),
    "supplies": Relation(
        ("company",),
        "company",
        (
            (
                "supplies {o}",
                "delivers parts to {o}",
                "is a supplier of {o}",
            ),
            (
                "was a supplier of {o}",
                "supplies parts to {o}",
            ),
        ),
        (
            (
                "{o} buys parts from {s}",
                "{o} is supplied by {s}",
                "the supplier of {o} is {s}",
            ),
            (
                "{o} has {s} as its supplier",
                "it is {s} that supplies {o}",
            ),
        ),
        (
            ("does not supply {o}", "delivers nothing to {o}"),
            ("is not a supplier of {o}",),
        ),
    ),
    "teaches": Relation(
        ("person",),
        "person",
        (
            (
                "teaches {o}",
                "is the teacher of {o}",
                "gives lessons to {o}",
            ),
            (
                "was the teacher of {o}",
                "teaches and gives lessons to {o}",
            ),
        ),
        (
            (
                "{o} is a pupil of {s}",
                "{o} takes lessons from {s}",
                "{o} has {s} as a teacher",
            ),
            (
                "the teacher of {o} is {s}",
                "it is {s} that teaches {o}",
            ),
        ),
        (
            ("does not teach {o}", "never gave lessons to {o}"),
            ("is not the teacher of {o}",),
        ),
    ),
    "works_for": Relation(
        ("person",),
        "company",
        (
            (
                "works for {o}",
                "has a job at {o}",
                "is an engineer at {o}",
            ),
            (
                "was an engineer at {o}",
                "works at {o}",
            ),
        ),
        (
            (
                "{o} employs {s}",
                "among the staff of {o} is {s}",
                "{o} gave a job to {s}",
            ),
            (
                "it is {o} that employs {s}",
                "{o} counts {s} among its staff",
            ),
        ),
        (
            ("does not work for {o}", "never had a job at {o}"),
            ("has no job at {o}",),
        ),
    ),
    "wrote": Relation(
        ("person",),
        "work",
        (
            (
                "wrote {o}",
                "was the author of {o}",
                "finished writing {o}",
            ),
            (
                "is the author of {o}",
                "wrote and finished {o}",
            ),
        ),
        (
            (
                "{o} was written by {s}",
                "it was {s} that wrote {o}",
                "the author of {o} was {s}",
            ),
            (
                "the author of {o} is {s}",
                "{o} has {s} as its author",
            ),
        ),
        (
            ("did not write {o}", "never finished writing {o}"),
            ("is not the author of {o}",),
        ),
    ),
}

EPO: dict[tuple[str, str], Wordings] = {
    ("born_in", "lives_in"): (
        (
            "{s} was born in {o} and still lives there",
            "{o} is the birthplace and also the home of {s}",
            "{s} never left the birthplace, {o}",
        ),
        (
            "{s} comes from {o} and has a house there",
            "{o} is the home and also the birthplace of {s}",
        ),
    ),
    ("founded", "leads"): (
        (
            "{s} founded {o} and still leads it",
            "{o} is led by its founder, {s}",
            "{s} is both founder and head of {o}",
        ),
        (
            "{s} started {o} and still runs it",
            "the founder and also the head of {o} is {s}",
        ),
    ),
    ("founded", "works_for"): (
        (
            "{s} founded {o} and still has a job there",
            "{o} employs its own founder, {s}",
        ),
        ("{s} started {o} and still works for it",),
    ),
    ("married_to", "teaches"): (
        (
            "{s} married {o} and gives lessons to her",
            "{s} is both husband and teacher of {o}",
        ),
        ("{s} is the husband of {o} and also teaches her",),
    ),
    ("owns", "supplies"): (
        (
            "{s} owns {o} and still delivers parts to it",
            "{o} belongs to {s} and buys parts from it",
            "the owner and also the supplier of {o} is {s}",
        ),
        (
            "{s} bought {o} and still supplies it",
            "{s} is both owner and supplier of {o}",
        ),
    ),
    ("parent_of", "teaches"): (
        (
            "{s} is the mother of {o} and also teaches her",
            "{o} takes lessons from her own father, {s}",
        ),
        ("{s} is both father and teacher of {o}",),
    ),
}
"""One pair of entities, two relations."""

# In SOO and NESTED the letter {n} is a name that holds the name of another entity, {i}:
# "University of Arlen" holds "Arlen", "Mara Tolin Works" holds "Mara Tolin".
SOO: dict[tuple[str, str], Wordings] = {
    ("school", "city"): (
        (
            "the {n} has its seat in the city of that name",
            "the {n} is based in its own city",
        ),
        ("the {n} is based in the city of that name",),
    ),
    ("company", "person"): (
        (
            "{n} was founded by the person of that name",
            "{n} was started by its namesake",
            "the person of that name is the founder of {n}",
        ),
        ("the founder of {n} is its namesake", "{n} was founded by its namesake"),
    ),
}
"""A school based in the city, or a company founded by the person, that its name holds."""

NESTED: dict[tuple[str, str, str], Wordings] = {
    ("studied_at", "lives_in", "city"): (
        (
            "{x} studied at the {n} and settled in the city of that name",
            "{x} lives in the city where the {n} gave her a degree",
        ),
        ("{x} is a graduate of the {n} and has a house in the city of that name",),
    ),
    ("studied_at", "born_in", "city"): (
        (
            "{x} studied at the {n} and was born in the city of that name",
            "{x} comes from the city where the {n} gave him a degree",
        ),
        ("{x} is a graduate of the {n} and comes from the city of that name",),
    ),
    ("works_for", "married_to", "person"): (
        (
            "{x} works for {n} and is married to its namesake",
            "{x} has a job at {n} and is the wife of the person of that name",
        ),
        ("{x} is an engineer at {n} and is married to the person of that name",),
    ),
    ("leads", "teaches", "person"): (
        (
            "{x} leads {n} and gives lessons to its namesake",
            "{x} is the head of {n} and teaches the person of that name",
        ),
        ("{x} runs {n} and is the teacher of its namesake",),
    ),
}
"""``(x, first relation, n)`` and ``(x, second relation, i)``: nested objects, no SOO."""

# In the frames {1} and {2} are phrases, and {p} is "who" for a person and "which" otherwise.
FRAMES_TWO: Wordings = (
    ("{s} {1} and {2}", "{s}, {p} {1}, {2}", "{s} {1}. the same {s_kind} {2}"),
    ("{s} both {1} and {2}", "{s}, {p} {1}, also {2}"),
)
"""Two facts with one subject."""

FRAMES_CHAIN: Wordings = (
    ("{s} {1}, {p} {2}", "{s} {1}, and that {o_kind} {2}"),
    ("{s} {1}, {p} also {2}", "{s} {1}. that {o_kind} {2}"),
)
"""The object of the first fact is the subject of the second."""

FRAMES_BOTH: Wordings = (
    ("like {s}, {t} {1}", "{t} {1}, just as {s}"),
    ("{t} also {1}, like {s}",),
)
"""Two subjects, one phrase."""

DOUBT: Wordings = (
    ("nobody believes that {s} {1}", "it is not true that {s} {1}"),
    ("nobody believes it is true that {s} {1}",),
)
"""A statement that is only mentioned; ``{1}`` is a phrase."""

DISTRACTORS: dict[tuple[str, ...], Wordings] = {
    ("person", "person"): (
        ("{a} met {b} on a train", "{a} wrote a letter to {b}", "{a} asked {b} for advice"),
        ("{a} met {b} and asked for advice",),
    ),
    ("person", "city"): (
        ("{a} passed through {b} on a train", "{a} spent a day in {b}"),
        ("{a} took a train to {b}",),
    ),
    ("person", "company"): (
        ("{a} wrote a letter to {b}", "{a} spent a day at {b}", "{a} has heard of {b}"),
        ("{a} asked {b} for a letter",),
    ),
    ("person", "work"): (
        ("{a} read {b} on a train", "{a} has heard of {b}"),
        ("{a} spent a day on {b}",),
    ),
    ("person", "school"): (
        ("{a} spent a day at {b}", "{a} asked {b} for advice"),
        ("{a} took a letter to {b}",),
    ),
    ("company", "company"): (
        ("{a} wrote a letter to {b}", "{a} is larger than {b}"),
        ("{a} asked for a letter from {b}",),
    ),
    ("city", "city"): (
        ("{a} is larger than {b}", "a train goes from {a} to {b}"),
        ("{a} is a day from {b}",),
    ),
    ("person", "work", "city"): (
        ("{a} read {b} on a train to {c}", "{a} took {b} to {c}"),
        ("{a} read {b} for a day in {c}",),
    ),
}
"""Entities that stand in one sentence and in no relation."""

JOINS: Wordings = (
    ("{1}, while {2}", "{1}. {2}", "while {1}, {2}"),
    ("{1}, and {2}", "{1}, and also {2}"),
)
"""A statement and a side remark, in either order."""
