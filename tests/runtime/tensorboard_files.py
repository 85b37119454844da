"""Reads scalars back from event files, as TensorBoard would."""

import struct

from tensorboardX.proto.event_pb2 import Event


def scalars(folder):
    """The values by (tag, step)."""
    found = {}
    for path in sorted(folder.glob('events*')):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found
