"""`vidweights info`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import click

from vidweights import dialects, home, images, pretrained
from vidweights.catalog import SourceFile
from vidweights.errors import UnavailableError
from vidweights.families import FAMILIES
from vidweights.families.cost import cost
from vidweights.families.resnet import DEPTHS
from vidweights.families.resnet3d import PAPER, RESNET3D, named, paper
from vidweights.folder import shown_input
from vidweights.hub import Repository, RepositoryCache, cache_folder, opened
from vidweights.images import ImageWeights
from vidweights_cli.output import json_option, print_json, table


@click.command("info")
@click.argument("name", required=False)
@click.option("--hub", "where", metavar="DIR|URL", help="Ask this folder or server; $HF_ENDPOINT if not given.")
@json_option
def command(name: str | None, where: str | None, as_json: bool) -> None:
    """What is known of the release NAME: files and hashes, input, labels, licence, accuracy, where it is kept.

    NAME may also be that of 2D weights (resnet18), which `vidweights inflate` takes; or that of networks (resnet3d,
    r2plus1d, r2plus1d_34): then their parameters, operations and the size of what they put out are printed. Without
    NAME: where vidweights keeps things, which families and dialects it knows, and the names of 2D weights.
    """
    networks = _networks(name) if name else None
    if networks is not None:
        print_json([asdict(each) for each in networks]) if as_json else _show_networks(networks)
        return
    if name is None:
        facts = _machine()
    elif name in images.names():
        facts = _image_weights(images.get(name))
    elif name not in pretrained.list_weights() and (repository := Repository.parse(name)) is not None:
        facts = _published(repository, where)
    else:
        facts = _release(pretrained.weights(name))
    if as_json:
        print_json(facts)
    else:
        _show(facts)


@dataclass(frozen=True)
class _Network:
    """A network of the R(2+1)D paper, and what it costs for clips of some lengths, 112 pixels high and wide."""

    name: str
    parameters: int
    frames: dict[int, dict[str, Any]]


_SIZE = 112
_FRAMES = (8, 16)


def _networks(name: str) -> list[_Network] | None:
    """The networks that a family or a name means; None if it means none."""
    chosen = {} if name == RESNET3D.name else named(name)
    if chosen is None:
        return None
    variants = [chosen["variant"]] if "variant" in chosen else list(PAPER)
    depths = [18] if not chosen else [chosen["depth"]] if "depth" in chosen else list(DEPTHS)
    return [_network(variant, depth) for variant in variants for depth in depths]


def _network(variant: str, depth: int) -> _Network:
    costs = {frames: cost(paper(variant, depth, frames), (frames, _SIZE, _SIZE)) for frames in _FRAMES}
    shown = {
        frames: {"multiply_adds": one.multiply_adds, "output": one.output, "parameters": one.parameters}
        for frames, one in costs.items()
    }
    return _Network(f"{variant}_{depth}", costs[_FRAMES[-1]].parameters, shown)


def _show_networks(networks: list[_Network]) -> None:
    click.echo(
        "With 400 classes, as the R(2+1)D paper has them (arXiv 1711.11248): the middle planes by its formula, no pool "
        f"behind the stem. Clips are {_SIZE} x {_SIZE}; a GFLOP is 10^9 multiplications, each with an addition."
    )
    headings = [f"{frames} frames: {what}" for frames in _FRAMES for what in ("GFLOPs", "last block")]
    rows = []
    for each in networks:
        cells = [each.name, f"{each.parameters:,}"]
        for one in each.frames.values():
            cells += [f"{one['multiply_adds'] / 1e9:.1f}", " x ".join(map(str, one["output"]))]
        rows.append(tuple(cells))
    table(("network", "parameters", *headings), rows)


def _machine() -> dict[str, Any]:
    return {
        "home": str(home.home()),
        "hub": opened().name,
        "hub cache": str(cache_folder()),
        "families": list(FAMILIES),
        "2D weights": list(images.names()),
        "dialects": {d.name: f"{d.family.name}, {d.framework}, {d.source}" for d in dialects.DIALECTS.values()},
    }


def _image_weights(weights: ImageWeights) -> dict[str, Any]:
    dialect = dialects.get(weights.dialect)
    depth = {"depth": weights.depth} if weights.depth is not None else {}
    return {
        "name": weights.name,
        "title": weights.title,
        "network": {"family": weights.family, **depth, "num_classes": weights.num_classes},
        "dialect": f"{dialect.name} ({dialect.source})",
        "files": {
            file.name: ", ".join(
                part
                for part in (
                    file.url,
                    file.mib and f"{file.mib} MiB",
                    file.sha256 and f"SHA-256 {file.sha256}",
                    file.md5 and f"MD5 {file.md5}",
                )
                if part
            )
            for file in weights.files
        },
        "hub": weights.hub or "none",
        "input": {**weights.input, "resized": weights.resize},
        "trained on": weights.training,
        "published accuracy": dict(weights.accuracy) or "none",
        "licence": dict(weights.licence),
        "source": weights.source,
        "facts": {**dialect.all_facts, **dialect.settings},
    }


def _published(repository: Repository, where: str | None) -> dict[str, Any]:
    hub = opened(where)
    revision = hub.describe(repository)
    if revision is None:
        raise UnavailableError(f"{hub.name} has no {repository}, or not for this token")
    return {
        "repository": f"{revision.repository}@{revision.commit}",
        "hub": hub.name,
        "files": {
            name: f"{file.size:,} bytes, {'SHA-256' if file.sha256 else 'git blob'} {file.digest}"
            for name, file in revision.files.items()
        },
        "here": str(RepositoryCache(revision.repository).find(revision.commit) or "not fetched"),
    }


def _release(record: pretrained.Weights) -> dict[str, Any]:
    release = record.release
    labels = release.labels
    return {
        "name": release.name,
        "title": release.title,
        "network": {"family": release.family, **release.config.to_json()},
        "released as": {
            "collection": release.collection,
            "checkpoint": release.checkpoint,
            "dialect": release.dialect,
            "repository": release.repository,
            "commit": release.commit,
            "paper": release.paper,
        },
        "files": {
            "url": release.url,
            **{file.name: _known(file) for file in release.files},
            **({"by hand": release.manual} if release.manual else {}),
        },
        "also in": {f"package {c.package} {c.version}": f"{c.file}, SHA-256 {c.sha256}" for c in release.copies},
        "input": {**shown_input(release.input), "source": release.input_source},
        "labels": {
            **({"count": len(labels), "first": ", ".join(labels[:3])} if labels else {}),
            **release.label_source,
        },
        "trained on": release.training["data"],
        "published accuracy": dict(release.accuracy) or "none",
        "licence": dict(release.licence),
        "facts": dialects.get(release.dialect).all_facts,
        "verified": release.verified + (f": {release.verified_by}" if release.verified_by else ""),
        "here": {"state": record.state, "folder": str(record.folder or home.weights_folder(release.name))},
    }


def _known(file: SourceFile) -> str:
    """What was published of a file's bytes, and its place if that is not its release's."""
    size = f"{file.size:,} bytes" if file.size is not None else f"{file.mib} MiB" if file.mib else "size not published"
    hashes = (
        file.sha256 and f"SHA-256 {file.sha256}",
        file.sha256_begins and f"SHA-256 begins with {file.sha256_begins}",
        file.git_blob and not file.sha256 and f"git blob {file.git_blob}",
    )
    return ", ".join(
        [size, next((one for one in hashes if one), "no hash published"), *([file.url] if file.url else [])]
    )


def _show(facts: dict[str, Any], indent: str = "") -> None:
    for name, value in facts.items():
        if value is None:  # a field of the network that is as its variant has it
            continue
        label = name if "." in name else name.replace("_", " ")  # a file keeps its name
        if isinstance(value, dict):
            if value:
                click.echo(f"{indent}{label}")
                _show(value, indent + "  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            click.echo(f"{indent}{label}: {text}")
