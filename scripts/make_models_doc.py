"""docs/models.md: the catalogue's rows, by the names that people know, and what else there is.

python -m scripts.make_models_doc            writes it
python -m scripts.make_models_doc --check    exits with 1 where the file is not what would be written
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tlray.catalogue import ModelFacts, all_models
from tlray.catalogue.data import CatalogueRow, file_contents, rows
from tlray.catalogue.libraries import LIBRARIES

TARGET = Path(__file__).parent.parent / "docs" / "models.md"
HEADINGS = ("#", "model", "id", "top-1 / top-5 %", "px", "parameters", "GFLOPs", "MB", "width", "blocks", "licence")
INTRODUCTION = """\
Written by `make docs` from the libraries' metadata and `tlray/catalogue/facts.json`; a test keeps it current.
`tlray models` shows all of it, filters and sorts.

- **Accuracy** is ImageNet-1k validation accuracy as published, not measured by tlray: by torchvision with its weights,
  by timm in {file} at commit {commit}, at the image size that is given or at the nearest one that was evaluated.
- **GFLOPs** are multiply-adds of one image in 10^9, as torchvision and papers count them; those of timm's models are
  computed from their modules (half of what `torch.utils.flop_counter` counts).
- **MB** are 2^20 bytes of download; `≈` is 4 bytes a parameter, where the library publishes no size.
- **width** is what the classifier takes, **blocks** are what can be frozen one by one.
- **licence** is of the weights, as their library states it; empty where it states none. `*` binds whoever uses them:
  it must be accepted by name, `accept_licences: [agpl-3.0]`.
"""


def render(models: Sequence[ModelFacts]) -> str:
    source = file_contents()["sources"]["accuracy"]
    introduction = INTRODUCTION.format(file=f"`{source['file']}`", commit=f"`{source['commit'][:12]}`")
    by_id: dict[str, ModelFacts] = {}
    for facts in models:
        by_id[facts.id] = facts
        by_id.setdefault(facts.arch, facts)  # the default weights come first
    table = [_line(HEADINGS), _line(["---"] * len(HEADINGS))]
    for row in rows():
        table += [_line(cells) for cells in _cells(row, by_id)]
    notes = [f"{row.number}. **{row.name}**: {row.note}." for row in rows() if row.note]
    sections = [
        "# The models",
        introduction.strip(),
        "## Models that articles name",
        "\n".join(table),
        "What is not as the name says, by row:",
        "\n".join(f"- {note}" for note in notes),
        "## Everything else",
        "\n".join(_summary(models)),
    ]
    return "\n\n".join(sections) + "\n"


def _cells(row: CatalogueRow, by_id: dict[str, ModelFacts]) -> Iterator[list[str]]:
    name = row.name
    if not row.ids:
        yield [str(row.number), name, "none", *[""] * (len(HEADINGS) - 3)]
    for id_ in row.ids:
        facts = by_id.get(id_)
        if facts is None:  # a library that is neither installed nor in the data file
            yield [str(row.number), name, f"`{id_}`", *[""] * (len(HEADINGS) - 3)]
            continue
        estimated = "≈" if facts.size_estimated else ""
        yield [
            str(row.number),
            name,
            f"`{id_}`" + (f" (`tlray[{facts.extra}]`)" if facts.extra else ""),
            " / ".join(_figure(value, ".2f") for value in (facts.top1, facts.top5)) if facts.top1 else "",
            _figure(facts.input_size, "d"),
            _figure(facts.num_params, ",d"),
            _figure(facts.gflops, ".2f"),
            estimated + _figure(facts.size_mb, ".1f"),
            _figure(facts.feature_width, "d"),
            _figure(facts.num_blocks, "d"),
            (facts.licence or "") + ("*" if facts.licence_binds else ""),
        ]


def _summary(models: Sequence[ModelFacts]) -> Iterator[str]:
    yield _line(["library", "architectures", "sets of weights", "with published accuracy", "with blocks counted"])
    yield _line(["---"] * 5)
    for home in LIBRARIES:
        here = [facts for facts in models if facts.library == home]
        archs = {facts.name for facts in here}
        with_blocks = {facts.name for facts in here if facts.num_blocks}
        counts = [len(archs), sum(f.tag is not None for f in here), sum(f.top1 is not None for f in here)]
        yield _line([home, *map(str, counts), str(len(with_blocks))])
    yield ""
    binding = Counter(str(facts.licence) for facts in models if facts.licence_binds)
    yield "Licences that must be accepted by name, with the number of sets of weights under them:"
    yield ", ".join(f"`{licence}` ({count})" for licence, count in sorted(binding.items())) + "."


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main(arguments: list[str]) -> int:
    page = render(all_models())
    if arguments == ["--check"]:
        if TARGET.is_file() and TARGET.read_text() == page:
            return 0
        print(f"{TARGET.name} is not what the catalogue says: run `make docs`", file=sys.stderr)
        return 1
    TARGET.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
