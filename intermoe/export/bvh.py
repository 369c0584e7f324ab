"""BVH (Biovision hierarchy): one file per person; centimetres, Y up, one world for all persons.

Every joint has its rotation in the channels Zrotation Xrotation Yrotation, in this order: R = Rz Rx Ry, degrees. The
root has its place too, and so have joints that slide against their parent (see ``Rig``); such a place is measured from
the parent and stands for the joint's OFFSET.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intermoe.export.format import Format
from intermoe.export.skeletons import body_joints, metres_per_unit, unequal, upright
from intermoe.export.take import Take, read_take
from intermoe.files import replacing
from intermoe.motion.rig import CHILDREN, END_SITES, Rig
from intermoe.motion.rotations import Array, about_axis, to_euler_zxy
from intermoe.motion.skeleton import JOINT_NAMES, NUM_JOINTS
from intermoe.reading import read_text

_PLACE = ("Xposition", "Yposition", "Zposition")
_TURN = ("Zrotation", "Xrotation", "Yrotation")
_CENTIMETRES = 100


def write(paths: list[Path], take: Take) -> None:
    """One file per person."""
    rig = take.rig
    angles = np.degrees(to_euler_zxy(rig.rotations, axis=1))
    for person, path in enumerate(paths):
        placed = [joint == 0 or joint in rig.sliding for joint in range(NUM_JOINTS)]
        columns = [
            columns
            for joint in _depth_first(0)
            for columns in ([_CENTIMETRES * rig.offsets[person, :, joint]] * placed[joint] + [angles[person, :, joint]])
        ]
        frames = np.concatenate(columns, axis=1)
        line = " ".join(["%.5f"] * frames.shape[1]) + "\n"
        with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
            file.write("HIERARCHY\n" + "\n".join(_hierarchy(rig, person, placed, 0, "")) + "\n")
            file.write(f"MOTION\nFrames: {len(frames)}\nFrame Time: {1 / take.fps!r}\n")
            file.write((line * len(frames)) % tuple(frames.ravel().tolist()))


def _depth_first(joint: int) -> Iterator[int]:
    """Joints in the order in which the file tells of them."""
    yield joint
    for child in CHILDREN[joint]:
        yield from _depth_first(child)


def _hierarchy(rig: Rig, person: int, placed: list[bool], joint: int, indent: str) -> Iterator[str]:
    channels = (_PLACE if placed[joint] else ()) + _TURN
    yield f"{indent}{'JOINT' if joint else 'ROOT'} {JOINT_NAMES[joint]}"
    yield indent + "{"
    yield f"{indent}\tOFFSET {_offset(rig.rest[person, joint])}"
    yield f"{indent}\tCHANNELS {len(channels)} {' '.join(channels)}"
    for child in CHILDREN[joint]:
        yield from _hierarchy(rig, person, placed, child, indent + "\t")
    if not CHILDREN[joint]:
        yield from (f"{indent}\tEnd Site", indent + "\t{")
        yield f"{indent}\t\tOFFSET {_offset(np.array(END_SITES[joint]))}"
        yield indent + "\t}"
    yield indent + "}"


def _offset(metres: Array) -> str:
    return " ".join(f"{_CENTIMETRES * value:.5f}" for value in metres.tolist())


@dataclass
class _Node:
    name: str
    parent: int
    offset: tuple[float, ...]
    channels: tuple[str, ...]


def read(paths: list[Path]) -> Take:
    """Any BVH files, one per person, with a skeleton whose 22 joints are known by name.

    The unit is told from the size of the body, which way is up from where its head is at rest.

    Raises:
        ValueError: a broken file, a skeleton without one of the joints, files of different length or rate; names the
            file.
    """
    persons, rates = [], []
    for path in paths:
        text = read_text(path)
        try:
            joints, fps = _read_person(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        persons.append(joints)
        rates.append(fps)
    lengths = [len(joints) for joints in persons]
    if len(set(lengths)) > 1 or max(rates) - min(rates) > 1e-3 * max(rates):
        raise ValueError(unequal(paths, lengths, rates))
    return read_take(paths, np.stack(persons), rates[0])


def _read_person(text: str) -> tuple[Array, float]:
    sections = re.split(r"(?<!\S)MOTION(?!\S)", text, maxsplit=1)  # a word of its own: names of joints may hold it
    if len(sections) < 2:
        raise ValueError("expected a BVH file with the sections HIERARCHY and MOTION, got none")
    head, tail = sections
    nodes = _parse_hierarchy(head.split())
    match = re.match(r"\s*Frames:\s*(\d+)\s*Frame Time:\s*(\S+)", tail)
    if match is None:
        raise ValueError("expected 'Frames:' and 'Frame Time:' after MOTION, got something else")
    count, width = int(match[1]), sum(len(node.channels) for node in nodes)
    try:
        seconds, values = float(match[2]), np.array(tail[match.end() :].split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"expected numbers in MOTION: {error}") from error
    if not count or values.size != count * width or not np.isfinite(values).all() or not seconds > 0:
        raise ValueError(f"expected {count} frames of {width} finite numbers, got {values.size} numbers")
    positions, rest = _forward(nodes, values.reshape(count, width))
    chosen = body_joints([node.name for node in nodes])
    joints = upright(positions[:, chosen], rest[chosen]) * metres_per_unit(positions[0, chosen])
    return joints, round(1 / seconds, 4)


def _parse_hierarchy(words: list[str]) -> list[_Node]:
    nodes: list[_Node] = []
    open_nodes: list[int] = []
    iterator = iter(words)
    try:
        for word in iterator:
            if word in ("ROOT", "JOINT", "End"):
                name = next(iterator)
                nodes.append(_Node("" if word == "End" else name, open_nodes[-1] if open_nodes else -1, (), ()))
            elif word == "{":
                open_nodes.append(len(nodes) - 1)
            elif word == "}":
                open_nodes.pop()
            elif word == "OFFSET":
                nodes[open_nodes[-1]].offset = tuple(map(float, _following(iterator, 3)))
            elif word == "CHANNELS":
                nodes[open_nodes[-1]].channels = _following(iterator, int(next(iterator)))
            elif word != "HIERARCHY":
                raise ValueError(f"HIERARCHY: expected ROOT, JOINT, End Site, OFFSET or CHANNELS, got {word!r}")
    except (StopIteration, IndexError) as error:
        raise ValueError("HIERARCHY: expected as many closing as opening braces, got fewer") from error
    if not nodes or open_nodes or any(len(node.offset) != 3 for node in nodes):
        raise ValueError("HIERARCHY: expected joints in braces, each with its OFFSET, got others")
    unknown = {channel for node in nodes for channel in node.channels} - {*_PLACE, *_TURN}
    if unknown:
        raise ValueError(f"CHANNELS: expected {', '.join(_PLACE + _TURN)}, got {', '.join(sorted(unknown))}")
    return nodes


def _following(words: Iterator[str], count: int) -> tuple[str, ...]:
    found = tuple(itertools.islice(words, count))
    if len(found) < count:
        raise StopIteration
    return found


def _forward(nodes: list[_Node], values: Array) -> tuple[Array, Array]:
    """Positions of all nodes (T, N, 3), and at rest (N, 3)."""
    places: list[Array] = []
    turns: list[Array] = []
    rest: list[Array] = []
    column = 0
    for node in nodes:
        offset = np.array(node.offset)
        place = np.tile(offset, (len(values), 1))
        turn = np.tile(np.eye(3), (len(values), 1, 1))
        for channel in node.channels:
            axis = "XYZ".index(channel[0])
            if channel in _PLACE:
                place[:, axis] = values[:, column]
            else:
                turn = turn @ about_axis(axis, np.radians(values[:, column]))
            column += 1
        if node.parent >= 0:
            place = places[node.parent] + (turns[node.parent] @ place[..., None])[..., 0]
            turn = turns[node.parent] @ turn
            offset = rest[node.parent] + offset
        places.append(place)
        turns.append(turn)
        rest.append(offset)
    return np.stack(places, axis=1), np.stack(rest)


FORMAT = Format(".bvh", write, read, per_person=True)
