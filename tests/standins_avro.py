"""Avro files as tests see them: a strict reader that goes by the schema in the file, and a writer of files of others.

Written from the specification 1.11, and never from the program.
"""
import json
import struct
import zlib


class Wrong(Exception):
    """The file is not what the specification says."""


class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if n < 0 or self.at + n > len(self.data):
            raise Wrong('%d bytes wanted at %d of %d' % (n, self.at, len(self.data)))
        self.at += n
        return self.data[self.at - n:self.at]

    def long(self):
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number += (byte % 128) << shift
            shift += 7
            if byte < 128:
                return number // 2 if number % 2 == 0 else -(number + 1) // 2

    def text(self):
        return self.take(self.long()).decode('utf-8')

    def value(self, schema):
        """A value of a schema: the kinds that a Point has."""
        kind = schema['type'] if isinstance(schema, dict) else schema
        if kind == 'record':
            return {field['name']: self.value(field['type']) for field in schema['fields']}
        if kind == 'map':
            return self.map(schema['values'])
        if kind == 'double':
            return struct.unpack('<d', self.take(8))[0]
        return {'long': self.long, 'string': self.text, 'bytes': lambda: self.take(self.long())}[kind]()

    def map(self, values):
        out, n = {}, self.long()
        while n:
            if n < 0:
                self.long()
            for _ in range(abs(n)):
                key = self.text()
                if key in out:
                    raise Wrong('two of %s' % key)
                out[key] = self.value(values)
            n = self.long()
        return out


class Container:
    """A whole file: .schema, .codec, .mark, .blocks (lists of records), .raw (the bytes of each record), .ends (where
    each block ends, the header first), .sizes. Wrong when anything is, the last byte included."""

    def __init__(self, data):
        cursor = Cursor(data)
        if cursor.take(4) != b'Obj\x01':
            raise Wrong('no Avro file')
        found = cursor.map('bytes')
        self.schema, self.codec = json.loads(found['avro.schema'].decode()), found['avro.codec'].decode()
        self.mark = cursor.take(16)
        self.blocks, self.raw, self.ends, self.sizes = [], [], [cursor.at], []
        while cursor.at < len(data):
            count, packed = cursor.long(), cursor.take(cursor.long())
            if cursor.take(16) != self.mark:
                raise Wrong('no marker at %d' % (cursor.at - 16))
            if self.codec == 'deflate':
                packed = zlib.decompress(packed, -15)
            inside = Cursor(packed)
            self.blocks.append([self.record(inside) for _ in range(count)])
            if not count or inside.at != len(packed):
                raise Wrong('%d values in %d of %d bytes' % (count, inside.at, len(packed)))
            self.ends.append(cursor.at)
            self.sizes.append(len(packed))

    def record(self, cursor):
        start, value = cursor.at, cursor.value(self.schema)
        self.raw.append(cursor.data[start:cursor.at])
        return value

    @property
    def records(self):
        return [record for block in self.blocks for record in block]


def read(path):
    """The Container at a path."""
    with open(str(path), 'rb') as file:
        return Container(file.read())


def long(number):
    """The bytes of a long."""
    number = number * 2 if number >= 0 else -number * 2 - 1
    out = b''
    while number >= 128:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def header(schema, codec, mark, more=()):
    """The bytes of a header; more: further (key, value) of its map."""
    pairs = [('avro.schema', schema)] + [('avro.codec', codec)] * bool(codec) + list(more)
    out = b'Obj\x01' + long(len(pairs))
    for key, value in pairs:
        out += long(len(key)) + key.encode() + long(len(value)) + value.encode()
    return out + b'\0' + mark


def block(count, data, mark):
    return long(count) + long(len(data)) + data + mark
