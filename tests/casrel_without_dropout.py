"""The command line of a tiny CasRel without dropout, for runs that must agree to rounding."""

from lib.casrel import CasRel
from lib.extraction.commands import extractor_commands


class Quiet(CasRel):
    """A CasRel in which nothing is random but its first weights."""

    @classmethod
    def create(cls, encoder, relations, *, texts=None, **options):
        sizes = {"hidden_size": 16, "layers": 1, "attention_heads": 2}
        quiet = {"dropout": 0.0, "word_dropout": 0.0}
        return super().create(encoder, relations, texts=texts, **sizes, **quiet, **options)


Quiet.__name__ = "CasRel"  # the saved folder is to name the model that anyone can load

if __name__ == "__main__":
    extractor_commands(Quiet, "python -m tests.casrel_without_dropout")(
        prog_name="python -m tests.casrel_without_dropout"
    )
