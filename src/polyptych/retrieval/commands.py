"""``polyptych index ...``: build, search, extend and describe a retrieval index.

Imports nothing heavy at the top, like ``polyptych.cli``, which adds these commands to itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")]
DataArgument = Annotated[
    Path, typer.Argument(help="Examples: a file or folder of any known format.")
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        help="Bundled name, folder or hub name (CLIP, SigLIP, a vision or a sentence encoder), or "
        "ImageBind's .pth file; default: the bundled one, or the one in the index."
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures or texts encoded together.")]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Processes of a Ray cluster; 0 for this one alone.")
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Ray cluster: auto, ray://host:10001 or local."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]


def add_commands(app: typer.Typer, example: Callable[[str], str]) -> None:
    """Add the commands to a group; ``example`` makes the last lines of a help text."""
    for function, words in (
        (build, "polyptych index build data/facts --out data/facts.index"),
        (search, "polyptych index search data/facts.index --image question.png"),
        (add, "polyptych index add data/facts.index data/more_facts"),
        (neighbors, "polyptych index neighbors data/facts.index data/train --out train.neighbors"),
        (
            attach,
            "polyptych index attach data/facts.index data/train train.neighbors --out shots.jsonl",
        ),
        (info, "polyptych index info data/facts.index"),
    ):
        app.command(epilog=example(words))(function)


def build(
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the index.")],
    encoder: EncoderOption = None,
    key: Annotated[str, typer.Option(help="What is looked for: image, text or both.")] = "image",
    kind: Annotated[
        str, typer.Option(help="flat (exact), hnsw, ivfpq, or auto: chosen by size.")
    ] = "auto",
    batch_size: BatchOption = 64,
    workers: WorkersOption = 0,
    ray: RayOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Embed a data set and index it.

    A killed build goes on where it stopped.
    """
    from polyptych.data.readers import read_examples
    from polyptych.retrieval.building import build_index
    from polyptych.retrieval.encoders import DEFAULT_ENCODER, load_encoder

    _one_of("key", key, ("image", "text", "both"))
    _one_of("kind", kind, ("auto", "flat", "hnsw", "ivfpq"))
    chosen: Any = {"key": key, "kind": kind}
    _quiet()
    loaded = load_encoder(encoder or DEFAULT_ENCODER, device=device)
    settings = _settings(batch_size, workers, ray)
    report = build_index(read_examples(data), out, loaded, **chosen, settings=settings)
    _show_report(report, out)


def add(
    index: IndexArgument,
    data: DataArgument,
    encoder: EncoderOption = None,
    batch_size: BatchOption = 64,
    workers: WorkersOption = 0,
    ray: RayOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Add entries to an index; what is in it is not computed again.

    Entries that are in it already are left out.
    """
    from polyptych.data.readers import read_examples
    from polyptych.retrieval.building import add_to_index
    from polyptych.retrieval.encoders import load_encoder
    from polyptych.retrieval.store import read_info

    _quiet()
    loaded = load_encoder(encoder or read_info(index).encoder, device=device)
    settings = _settings(batch_size, workers, ray)
    _show_report(add_to_index(read_examples(data), index, loaded, settings=settings), index)


def search(
    index: IndexArgument,
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture; may be repeated.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Entries to show.")] = 5,
    encoder: EncoderOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Show the entries nearest to a picture, a text, or both together."""
    from polyptych.errors import PolyptychError
    from polyptych.retrieval.encoders import load_encoder
    from polyptych.retrieval.retriever import Retriever
    from polyptych.schema import Example, ImageBlock, ImageRef, Message, TextBlock

    if not text and not image:
        raise PolyptychError("give a text, an --image, or both")
    pictures = tuple(ImageRef(path=str(path)) for path in image or ())
    content: tuple[Any, ...] = (*(ImageBlock() for _ in pictures), TextBlock(text or ""))
    question = Example("query", (Message("user", content),), pictures)
    _quiet()
    retriever = Retriever(
        index, load_encoder(encoder, device=device) if encoder else None, device=device
    )
    query: Any = "fused" if text and image else "text" if text else "image"
    vectors, _ = retriever.encode([question], query)
    for place, hit in enumerate(retriever.search(vectors, top_k)[0], start=1):
        entry = retriever.example(hit)
        typer.echo(f"{place:>3}. {hit.score:.4f}  {hit.id}")
        for message in entry.messages:
            typer.echo(f"       {message.role}: {' '.join(message.text.split())}")
        for ref in entry.images:
            path = os.path.normpath(str(ref.path))
            typer.echo(f"       {path}{'' if Path(path).exists() else '  (gone)'}")


def neighbors(
    index: IndexArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The table's file.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Neighbors of each.")] = 10,
    query: Annotated[
        str | None,
        typer.Option(help="What asks: image, text or fused; default: text if it can be read."),
    ] = None,
    exclude_self: Annotated[bool, typer.Option(help="Leave out the example itself.")] = True,
    exclude_same_image: Annotated[
        bool, typer.Option(help="Leave out entries that show one of its images.")
    ] = True,
    unique_images: Annotated[
        bool, typer.Option(help="Of entries with the same images only the nearest.")
    ] = True,
    encoder: EncoderOption = None,
    batch_size: BatchOption = 64,
    workers: WorkersOption = 0,
    ray: RayOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Find the shots of every example of a data set, once, for training and answering."""
    from polyptych.data.readers import read_examples
    from polyptych.retrieval.encoders import load_encoder
    from polyptych.retrieval.neighbors import NeighborSettings, build_neighbors
    from polyptych.retrieval.retriever import Retriever

    if query is not None:
        _one_of("query", query, ("image", "text", "fused"))
    _quiet()
    loaded = load_encoder(encoder, device=device) if encoder else None
    retriever = Retriever(index, loaded, device=device)
    asks: Any = query or retriever.default_query()
    chosen = NeighborSettings(top_k, asks, exclude_self, exclude_same_image, unique_images)
    table = build_neighbors(
        read_examples(data),
        retriever,
        out,
        settings=chosen,
        embedding=_settings(batch_size, workers, ray),
    )
    typer.echo(f"{table.mean_count:.1f} neighbors of each of {len(table)} examples in {out}")


def attach(
    index: IndexArgument,
    data: DataArgument,
    table: Annotated[Path, typer.Argument(help="What index neighbors has written for DATA.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of records with shots (JSONL).")],
    shots: Annotated[
        int | None, typer.Option("--shots", "-k", min=1, help="Of each; default: all in the table.")
    ] = None,
) -> None:
    """Write a data set with its neighbors as shots, ready for training and evaluation."""
    from polyptych.data.readers import read_examples
    from polyptych.data.records import write_records
    from polyptych.retrieval.neighbors import NeighborTable, with_shots
    from polyptych.retrieval.store import Store

    store, neighbors_of = Store(index), NeighborTable(table)
    count = write_records(
        out, (with_shots(each, neighbors_of, store, shots) for each in read_examples(data))
    )
    typer.echo(f"{count} examples with their shots in {out}")


def info(index: IndexArgument) -> None:
    """Show what an index holds and how exact it is; checks that its files belong together."""
    from polyptych.retrieval.index import VectorIndex, describe
    from polyptych.retrieval.store import Store

    store = Store(index)
    VectorIndex(store)
    found = store.info
    size = sum(file.stat().st_size for file in Path(index).iterdir() if file.is_file())
    for name, value in (
        ("entries", f"{found.count} in {len(found.segments)} segment(s)"),
        ("keys", f"{found.key}, {found.dimension} numbers each"),
        ("encoder", f"{found.encoder} ({found.encoder_fingerprint})"),
        ("search", f"{found.kind}, {describe(found)}"),
        ("size", f"{size / 1e6:.1f} MB"),
        ("checksum", found.fingerprint),
    ):
        typer.echo(f"{name:<9} {value}")


def _show_report(report: Any, folder: Path) -> None:
    from polyptych.retrieval.index import describe

    for count, why in (
        (report.present, "already there"),
        (report.without_key, f"without a {report.info.key} key"),
    ):
        if count:
            typer.echo(f"{count} left out: {why}")
    typer.echo(
        f"{report.added} added, {report.info.count} entries in {folder} "
        f"({report.info.kind}, {describe(report.info)})"
    )


def _quiet() -> None:
    """Hide transformers' bars for reading weights."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _settings(batch_size: int, workers: int, ray: str | None) -> Any:
    from polyptych.data.cluster import Cluster
    from polyptych.retrieval.inputs import Embedding

    if ray is not None:
        workers = workers or Cluster().workers
    return Embedding(batch_size, workers, ray)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    from polyptych.errors import PolyptychError

    if value not in known:
        raise PolyptychError(f"no {name} {value!r}; known: {', '.join(known)}")
