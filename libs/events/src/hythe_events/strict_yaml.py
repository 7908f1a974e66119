"""YAML that only has one reading: what two parsers could read differently, or what would end a parser, is refused.

A value that one parser sees and another does not would slip past whoever checks it: duplicate keys (PyYAML keeps the
last), tags, merges of a billion aliases. And libyaml ends the whole process on a file that is nested deep enough, so
depth is counted event by event before anything recurses.
"""

from __future__ import annotations

from typing import Any

import yaml

from hythe_events.errors import Refused

LARGEST = 1_000_000
"""Bytes of one file, and the number of values in it once its anchors are expanded."""
DEEPEST = 50
MOST_ALIASES = 100


def read_mapping(text: bytes, name: str) -> dict[str, Any]:
    """The one mapping that `text` holds. Raises Refused, naming `name`, for what is not YAML or has two readings.

    No duplicate keys, no tags, one document, at most 100 aliases, depth at most 50, at most 1 MB as it stands and
    expanded. An empty file is an empty mapping.
    """
    if len(text) > LARGEST:
        raise Refused(f"{name} is larger than 1 MB")
    try:
        _skim(text, name)
        node = yaml.compose(text, yaml.CSafeLoader)
        if node is None:
            return {}
        _measure(node, name, {})
        mapping = yaml.load(text, yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Refused(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict):
        raise Refused(f"{name} must be a mapping of names to values")
    return mapping


def _skim(text: bytes, name: str) -> None:
    """Depth and aliases, event by event: a reader that recurses ends the process on a file that is nested too deep."""
    depth = aliases = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > DEEPEST:
            raise Refused(f"{name} is nested deeper than {DEEPEST}")
        if aliases > MOST_ALIASES:
            raise Refused(f"{name} has more than {MOST_ALIASES} aliases")


_plain_tags = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")
}


def _measure(node: yaml.Node, name: str, seen: dict[int, int]) -> int:
    """How many values `node` expands to. Raises Refused for a duplicate key or a tag."""
    if id(node) in seen:
        return seen[id(node)]
    line = node.start_mark.line + 1
    if node.tag not in _plain_tags:
        raise Refused(f"{name} line {line}: the tag {node.tag} is not allowed")
    size = 1
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise Refused(f"{name} line {line}: the key {twice} stands twice")
        size += sum(_measure(part, name, seen) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_measure(part, name, seen) for part in node.value)
    if size > LARGEST:
        raise Refused(f"{name} expands to more than a million values")
    seen[id(node)] = size
    return size
